-- The next attempt continues from the newest verified checkpoint.
obj.spec.suspend = false
return obj

-- The pods save a checkpoint and end. The job holds nothing but its workspace until it is resumed.
obj.spec.suspend = true
return obj

-- A job that has Failed is open again once spec.retry is above status.retry, whatever was used before.
local used = (obj.status or {}).retry or 0
local asked = obj.spec.retry or 0
obj.spec.retry = (used > asked and used or asked) + 1
return obj

-- Health of a FineTuneJob: Progressing until it ends, Suspended while somebody keeps it from running, then Healthy or
-- Degraded. The conditions decide. Argo CD ignores changes of the message, so that progress may stand in it.
-- kstatus comes to the same result: its Current is Healthy, and its Failed is Degraded.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function health(code, message)
  return { status = code, message = message }
end

local function told(reason, message)
  return (reason or "") .. ": " .. (message or "")
end

local ended = holds("Succeeded") or holds("Failed")
if obj.metadata.deletionTimestamp ~= nil and not ended then
  -- Argo CD asks only about hooks. It removes their finalizer when the sync is over, and only then the job is gone.
  return health("Degraded", "The job was deleted before it ended.")
end
if status.observedGeneration == nil or status.observedGeneration < 0 then
  return health("Progressing", "Waiting for the operator to accept the job.")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "Waiting for the operator to act on the last change of the job.")
end
if holds("Succeeded") then
  return health("Healthy", told(status.reason, status.message))
end
if holds("Failed") then
  return health("Degraded", told(status.reason, status.message))
end
if holds("Suspended") then
  -- Resumed with resources that do not fit the job: it waits for a correction.
  local code = status.reason == "InvalidSpec" and "Degraded" or "Suspended"
  return health(code, told(status.reason, status.message))
end
if status.phase == "Queued" or status.reason == "JobSuspended" then
  -- Taken out of its queue for good: it waits until somebody puts it back.
  local code = status.reason == "Deactivated" and "Degraded" or "Suspended"
  return health(code, told(status.reason, status.message))
end
local message = told(status.reason, status.message)
if status.progress ~= nil and status.progress.summary ~= nil then
  message = message .. " " .. status.progress.summary
end
return health("Progressing", message)

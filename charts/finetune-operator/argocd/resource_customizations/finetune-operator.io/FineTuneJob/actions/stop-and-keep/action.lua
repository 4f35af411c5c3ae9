-- Training ends with this step, and the job makes the artifact of what was trained. It cannot be taken back, and Argo CD
-- runs an action also where discovery.lua disables it.
local status = obj.status or {}
local trained = status.checkpoint ~= nil
for _, attempt in ipairs(status.attempts or {}) do
  trained = trained or attempt.runningTime ~= nil or attempt.checkpointStep ~= nil
end
if not trained then
  error("Nothing was trained yet, so there is nothing to keep: the job would fail with NothingToKeep.", 0)
end
obj.spec.stop = "keep"
return obj

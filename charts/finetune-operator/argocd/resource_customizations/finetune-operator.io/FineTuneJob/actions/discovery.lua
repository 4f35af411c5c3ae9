-- The actions of a FineTuneJob, each enabled only where it has an effect (docs/suspend.md, docs/after-the-end.md).
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local failed = holds("Failed")
local ended = failed or holds("Succeeded")
local suspended, stopped = obj.spec.suspend == true, obj.spec.stop == "keep"

-- Something was trained, so that there is something to keep.
local trained = status.checkpoint ~= nil
for _, attempt in ipairs(status.attempts or {}) do
  trained = trained or attempt.runningTime ~= nil or attempt.checkpointStep ~= nil
end

-- A retry that the operator has not seen yet is not offered again. A job that was stopped too early stays Failed.
local retries = failed and conditions.Failed.reason ~= "NothingToKeep"
  and (obj.spec.retry or 0) <= (status.retry or 0)

return {
  ["suspend"] = { ["iconClass"] = "fa fa-fw fa-pause", ["disabled"] = ended or suspended },
  ["resume"] = { ["iconClass"] = "fa fa-fw fa-play", ["disabled"] = ended or stopped or not suspended },
  ["retry"] = { ["iconClass"] = "fa fa-fw fa-redo", ["disabled"] = not retries },
  ["stop-and-keep"] = {
    ["iconClass"] = "fa fa-fw fa-stop",
    ["displayName"] = "Stop and keep",
    ["disabled"] = ended or stopped or not trained,
  },
}

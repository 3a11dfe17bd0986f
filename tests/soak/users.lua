-- One request of each of 1,000 users in turn, to the target of tests/integration/snapshots.py.
local next_user = 0

request = function()
  next_user = (next_user + 1) % 1000
  return wrk.format("GET", "/v2/models/fraud/infer", {
    ["host"] = "fraud.test",
    ["x-user-id"] = "user-" .. next_user,
  })
end

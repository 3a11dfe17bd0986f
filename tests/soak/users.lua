-- One request of each of 1,000 users in turn, to the target of tests/integration/snapshots.py.
-- The argument is how many milliseconds a connection rests between two requests.
local next_user = 0
local rest_ms = 0

init = function(args)
  rest_ms = tonumber(args[1]) or 0
  if rest_ms > 0 then
    delay = function()
      return rest_ms
    end
  end
end

request = function()
  next_user = (next_user + 1) % 1000
  return wrk.format("GET", "/v2/models/fraud/infer", {
    ["host"] = "fraud.test",
    ["x-user-id"] = "user-" .. next_user,
  })
end

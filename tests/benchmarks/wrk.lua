-- wrk: one of 4,096 users per request, prepared once so that the client stays cheap.
local requests, at = {}, 0
init = function(args)
  for user = 0, 4095 do
    requests[user] = wrk.format("GET", "/bench", {
      ["x-user-id"] = "user-" .. user, ["x-country"] = "DE", ["x-app-version"] = "2.7.1",
    })
  end
end
request = function()
  at = (at + 1) % 4096
  return requests[at]
end

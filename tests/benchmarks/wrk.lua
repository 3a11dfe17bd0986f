-- wrk: one of 32,768 users per request, prepared once so that the client stays cheap. In turn, and
-- more of them than a sidecar remembers: nobody is known when he comes back.
local requests, at = {}, 0
init = function(args)
  for user = 0, 32767 do
    requests[user] = wrk.format("GET", "/bench", {
      ["x-user-id"] = "user-" .. user, ["x-country"] = "DE", ["x-app-version"] = "2.7.1",
    })
  end
end
request = function()
  at = (at + 1) % 32768
  return requests[at]
end

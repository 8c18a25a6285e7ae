-- Requests that take their Authorization from the lines of the file named by AUTHORIZATIONS, in turn.
-- They are built before the clock runs. With one line wrk repeats one request and does not call Lua
-- at all.

local lines = {}
for line in io.lines(os.getenv("AUTHORIZATIONS")) do
  lines[#lines + 1] = line
end

wrk.headers["Authorization"] = lines[1]

if #lines > 1 then
  local requests = {}
  local at = 0

  function init()
    for index, line in ipairs(lines) do
      requests[index] = wrk.format("GET", nil, { ["Authorization"] = line })
    end
  end

  function request()
    at = at % #requests + 1
    return requests[at]
  end
end

-- wrk's own report is rounded; this one is not.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests,
    summary.duration / 1e6,
    latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end

-- Decides over the buckets in KEYS, which all are of one consumer: all of them take, or none.
--
-- ARGV: what to do, the units, how many more to take where they are there, how many to take back
-- first, and the time in seconds and nanoseconds, which is empty but in tests. Then for each key:
--
--   1  the quota: its algorithm, its burst or limit, and its interval in nanoseconds or its window in
--      milliseconds, with a space after each
--   2  the burst or limit
--   3  billions of the interval, or the window in milliseconds
--   4  the rest of the interval
--   5  how the asking node knows the bucket: billions of nanoseconds until it is full, or slots
--   6  the rest of the nanoseconds
--   7  '1' if the node went on without Redis since it heard of the bucket
--
-- Returns whether the units were taken, how many more were, and how each bucket stands: the billions of
-- nanoseconds until it is full and the rest; or those until the current slot ends, and the slots.
--
-- Numbers of Lua are doubles, which are exact up to 2^53 (9.007e15). A number of nanoseconds may be
-- larger, and is two here: billions, and the rest. Each half has room for a factor of 65,536 (buckets
-- fill within 4.6e9 billions: 6.0e14; a rest is below 1e9: 6.6e13). The clock in such halves is seconds
-- and nanoseconds.

if ARGV[1] == 'probe' then
  -- A server that cannot write cannot count.
  return redis.call('SET', KEYS[1], '', 'PX', 1)
end

local BILLION = 1000000000
local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min

local function normal(high, low)
  local carry = floor(low / BILLION)
  return high + carry, low - carry * BILLION
end

local function less(ah, al, bh, bl)
  return ah < bh or ah == bh and al < bl
end

local function lesser(ah, al, bh, bl)
  if less(ah, al, bh, bl) then
    return ah, al
  end
  return bh, bl
end

-- Nothing is less than zero.
local function minus(ah, al, bh, bl)
  if less(ah, al, bh, bl) then
    return 0, 0
  end
  return normal(ah - bh, al - bl)
end

-- `n` has up to 32 bits, of which each half fits. A product that is too large to be exact is larger
-- than any bucket.
local function times(h, l, n)
  if n < 65536 then
    return normal(h * n, l * n)
  end
  local high, low = floor(n / 65536), n % 65536
  local mh, ml = normal(h * high, l * high)
  mh, ml = normal(mh * 65536, ml * 65536)
  return normal(mh + h * low, ml + l * low)
end

local now_s, now_n
if ARGV[5] == '' then
  local time = redis.call('TIME')
  now_s, now_n = tonumber(time[1]), time[2] * 1000
else
  now_s, now_n = tonumber(ARGV[5]), tonumber(ARGV[6])
end

-- GCRA. A bucket is as many nanoseconds ahead of the clock as it takes until it is full: `h` and `l`.
local function refilling()
  local gcra = {}

  function gcra.quota(bucket, high, low)
    bucket.pace_h, bucket.pace_l = tonumber(high), tonumber(low)
    bucket.full_h, bucket.full_l = times(bucket.pace_h, bucket.pace_l, bucket.size)
  end

  -- More than two full buckets are never owed. A clock that went back, as it may with another server,
  -- makes no more of them.
  local function stand(bucket, h, l)
    local full_h, full_l = bucket.full_h, bucket.full_l
    if less(full_h, full_l, h, l) then
      local most_h, most_l = normal(full_h * 2, full_l * 2)
      h, l = lesser(h, l, most_h, most_l)
    end
    bucket.h, bucket.l = h, l
  end

  function gcra.know(bucket, high, low)
    stand(bucket, tonumber(high), tonumber(low))
  end

  function gcra.read(bucket, text)
    local high, low = text:match('^(%d+) (%d+)$')
    if high then
      stand(bucket, minus(tonumber(high), tonumber(low), now_s, now_n))
    end
    return high
  end

  function gcra.write(bucket)
    local h, l = normal(now_s + bucket.h, now_n + bucket.l)
    return string.format('%.0f %09.0f', h, l), bucket.h * 1000 + ceil(bucket.l / 1000000)
  end

  function gcra.tell(bucket, reply)
    reply[#reply + 1] = bucket.h
    reply[#reply + 1] = bucket.l
  end

  function gcra.is_full(bucket)
    return bucket.h == 0 and bucket.l == 0
  end

  function gcra.fits(bucket, units)
    local h, l = times(bucket.pace_h, bucket.pace_l, units)
    h, l = normal(bucket.h + h, bucket.l + l)
    return not less(bucket.full_h, bucket.full_l, h, l)
  end

  function gcra.add(bucket, units)
    local h, l = times(bucket.pace_h, bucket.pace_l, units)
    stand(bucket, normal(bucket.h + h, bucket.l + l))
  end

  function gcra.remove(bucket, units)
    bucket.h, bucket.l = minus(bucket.h, bucket.l, times(bucket.pace_h, bucket.pace_l, units))
  end

  function gcra.merge(bucket, other)
    if less(bucket.h, bucket.l, other.h, other.l) then
      bucket.h, bucket.l = other.h, other.l
    end
  end

  -- What is used up, of what there is.
  function gcra.used(bucket)
    return bucket.h, bucket.l, bucket.full_h, bucket.full_l
  end

  function gcra.whole(bucket)
    return bucket.full_h, bucket.full_l
  end

  function gcra.use(bucket, h, l)
    bucket.h, bucket.l = h, l
  end
  return gcra
end

-- Sliding windows: what was taken in each slot, the current one first. A slot is a 32nd of the
-- window, which is whole milliseconds: it is as many ticks of 31,250 ns as the window has
-- milliseconds. Ticks of the clock are exact (6e13 of them in our days).
local function sliding()
  local SLOTS, TICK, TICKS_PER_MILLI = 33, 31250, 32
  local ticks = now_s * (BILLION / TICK) + floor(now_n / TICK)
  local window = {}

  function window.quota(bucket, millis)
    bucket.pace = tonumber(millis)
    bucket.number = floor(ticks / bucket.pace)
  end

  function window.know(bucket, list)
    local slots, total = {}, 0
    for text in list:gmatch('%d+') do
      local units = tonumber(text)
      slots[#slots + 1], total = units, total + units
    end
    bucket.slots, bucket.total = slots, total
  end

  function window.read(bucket, text)
    local number, list = text:match('^(%d+) ([%d,]*)$')
    if not number then
      return
    end
    window.know(bucket, list)
    local slots, passed = bucket.slots, bucket.number - number
    if passed < 0 and passed >= -SLOTS then
      -- The clock went back a little: it counts as late as it was.
      bucket.number = bucket.number - passed
    end
    for _ = 1, min(passed, SLOTS) do
      table.insert(slots, 1, 0)
      bucket.total = bucket.total - (slots[SLOTS + 1] or 0)
      slots[SLOTS + 1] = nil
    end
    return number
  end

  function window.write(bucket)
    local youngest = 1
    while bucket.slots[youngest] == 0 do
      youngest = youngest + 1
    end
    local until_gone = (bucket.number + SLOTS + 1 - youngest) * bucket.pace - ticks
    bucket.list = table.concat(bucket.slots, ',')
    return string.format('%.0f %s', bucket.number, bucket.list), ceil(until_gone / TICKS_PER_MILLI)
  end

  function window.tell(bucket, reply)
    local left = (bucket.number + 1) * bucket.pace - ticks
    -- Whole seconds first, as there may be more ticks than fit.
    local seconds = floor(left / (BILLION / TICK))
    local rest = (left - seconds * (BILLION / TICK)) * TICK - now_n % TICK
    seconds, rest = normal(seconds, rest)
    reply[#reply + 1] = seconds
    reply[#reply + 1] = rest
    reply[#reply + 1] = bucket.list or table.concat(bucket.slots, ',')
  end

  function window.is_full(bucket)
    return bucket.total == 0
  end

  function window.fits(bucket, units)
    return bucket.total + units <= bucket.size
  end

  -- No more is owed than as much again.
  function window.add(bucket, units)
    local added = min(units, max(2 * bucket.size - bucket.total, 0))
    bucket.slots[1], bucket.total = (bucket.slots[1] or 0) + added, bucket.total + added
  end

  -- From the latest slots first.
  function window.remove(bucket, units)
    for age, held in ipairs(bucket.slots) do
      local removed = min(held, units)
      bucket.slots[age], bucket.total = held - removed, bucket.total - removed
      units = units - removed
    end
  end

  -- The slots of a node are not those of Redis: what it knows of beyond them is added up.
  function window.merge(bucket, other)
    window.add(bucket, max(other.total - bucket.total, 0))
  end

  function window.used(bucket)
    return 0, bucket.total, 0, bucket.size
  end

  function window.whole(bucket)
    return 0, bucket.size
  end

  function window.use(bucket, h, l)
    bucket.slots, bucket.total = { h * BILLION + l }, h * BILLION + l
  end
  return window
end

-- Made when they are needed, as a script makes its functions each time it runs.
local gcra, window
local function algorithm_of(name)
  if name == 'gcra' then
    gcra = gcra or refilling()
    return gcra
  elseif name == 'window' then
    window = window or sliding()
    return window
  end
end

-- Leaves a bucket as full as one of an earlier quota is: half used up stays half used up.
local function rescale(bucket, algorithm, stored)
  local name, size, pace, text = stored:match('^(%a+) (%d+) (%d+) (.*)$')
  local earlier, of = algorithm_of(name), { size = tonumber(size) }
  if not earlier then
    return
  end
  if name == 'window' and algorithm == window and tonumber(pace) == bucket.pace then
    -- It holds what it held.
    return window.read(bucket, text)
  end
  if name == 'gcra' then
    gcra.quota(of, pace:sub(1, -10):match('%d+') or 0, pace:sub(-9))
  else
    window.quota(of, pace)
  end
  if not earlier.read(of, text) then
    return
  end
  local ph, pl, wh, wl = earlier.used(of)
  -- More than all of it is owed, and is no more than as much again.
  ph, pl = lesser(ph, pl, normal(wh * 2, wl * 2))
  -- Rounded up. The product would have no room, so that it is divided as on paper, digit by digit.
  local qh, ql, rh, rl = 0, 0, 0, 0
  for digit in string.format('%.0f%09.0f', algorithm.whole(bucket)):gmatch('%d') do
    qh, ql = normal(qh * 10, ql * 10)
    rh, rl = normal(rh * 10 + ph * digit, rl * 10 + pl * digit)
    while not less(rh, rl, wh, wl) do
      rh, rl = minus(rh, rl, wh, wl)
      qh, ql = normal(qh, ql + 1)
    end
  end
  if less(0, 0, rh, rl) then
    qh, ql = normal(qh, ql + 1)
  end
  algorithm.use(bucket, qh, ql)
  return true
end

local buckets, algorithms = {}, {}
for at, key in ipairs(KEYS) do
  local argument = 7 * at
  local header, known, rest = ARGV[argument], ARGV[argument + 4], ARGV[argument + 5]
  local algorithm = algorithm_of(header:match('%a+'))
  local function new()
    local bucket = { size = tonumber(ARGV[argument + 1]) }
    algorithm.quota(bucket, ARGV[argument + 2], ARGV[argument + 3])
    return bucket
  end
  local bucket, stored = new(), redis.call('GET', key) or ''
  local goes_on = stored:sub(1, #header) == header and algorithm.read(bucket, stored:sub(#header + 1))
  if not goes_on then
    bucket.is_changed = rescale(bucket, algorithm, stored)
    if not bucket.is_changed then
      -- Never there, full again, or lost: a server that was flushed refills nothing.
      algorithm.know(bucket, known, rest)
      bucket.is_changed = not algorithm.is_full(bucket)
    end
  end
  if ARGV[argument + 6] == '1' then
    local other = new()
    algorithm.know(other, known, rest)
    algorithm.merge(bucket, other)
    bucket.is_changed = true
  end
  buckets[at], algorithms[at] = bucket, algorithm
end

local function each(operation, units)
  for at, bucket in ipairs(buckets) do
    algorithms[at][operation](bucket, units)
    bucket.is_changed = true
  end
end

local function all_fit(units)
  for at, bucket in ipairs(buckets) do
    if not algorithms[at].fits(bucket, units) then
      return false
    end
  end
  return true
end

local mode, units, extra, returned = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = 1
if returned > 0 then
  each('remove', returned)
end
if mode == 'take' then
  while extra > 0 and not all_fit(units + extra) do
    extra = floor(extra / 2)
  end
  if all_fit(units + extra) then
    each('add', units + extra)
  else
    taken = 0
  end
elseif mode == 'charge' then
  each('add', units)
elseif mode == 'give_back' then
  each('remove', units)
end

local reply = { taken, extra }
for at, bucket in ipairs(buckets) do
  local algorithm = algorithms[at]
  if bucket.is_changed then
    -- Until the bucket is full, and a second at least: nodes that have asked already do not know yet
    -- of what was given back, and would say what they know of a bucket that is not there.
    local text, millis = algorithm.write(bucket)
    redis.call('SET', KEYS[at], ARGV[7 * at] .. text, 'PX', max(millis, 1000))
  end
  algorithm.tell(bucket, reply)
end
return reply

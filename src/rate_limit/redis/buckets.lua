-- Decides over the buckets in KEYS, which all are of one consumer: all of them take, or none.
--
-- ARGV: what to do, the units, how many more to take where they are there, how many to take back
-- first, and the time, which is empty but in tests. Then for each key: the algorithm, the burst or
-- limit, the interval in nanoseconds or the window in milliseconds, how the asking node knows the
-- bucket, and whether the node went on without Redis since.
--
-- Returns whether the units were taken, how many more were, and how each bucket stands.
--
-- Numbers of Lua are doubles, which are exact up to 2^53 (9.007e15). A number of nanoseconds may be
-- larger, and is a pair here, {billions, rest}: each half has room for a factor of 65,536 (6.6e13 and
-- 7.2e14). The clock, in pairs, is seconds and nanoseconds.

if ARGV[1] == 'probe' then
  -- A server that cannot write cannot count.
  return redis.call('SET', KEYS[1], '', 'PX', 1)
end

local BILLION = 1000000000
local ZERO, ONE = { 0, 0 }, { 0, 1 }

local function pair(high, low)
  local carry = math.floor(low / BILLION)
  return { high + carry, low - carry * BILLION }
end

local function parse(text)
  return { tonumber(text:sub(1, -10)) or 0, tonumber(text:sub(-9)) or 0 }
end

local function format(a)
  return string.format('%.0f%09.0f', a[1], a[2])
end

local function less(a, b)
  return a[1] < b[1] or a[1] == b[1] and a[2] < b[2]
end

local function lesser(a, b)
  return less(a, b) and a or b
end

local function plus(a, b)
  return pair(a[1] + b[1], a[2] + b[2])
end

-- Nothing is less than zero.
local function minus(a, b)
  return less(a, b) and ZERO or pair(a[1] - b[1], a[2] - b[2])
end

-- `n` has up to 32 bits, of which each half fits. A product that is too large to be exact is larger
-- than any bucket.
local function times(a, n)
  local high, low = math.floor(n / 65536), n % 65536
  local most = pair(a[1] * high, a[2] * high)
  return plus(pair(most[1] * 65536, most[2] * 65536), pair(a[1] * low, a[2] * low))
end

-- `part` of `whole`, of `of` instead, rounded up. The product would have no room, so that it is
-- divided as on paper, digit by digit. More than all of it is owed, and is no more than as much again.
local function scale(part, whole, of)
  part = lesser(part, times(whole, 2))
  local quotient, rest = ZERO, ZERO
  for digit in format(of):gmatch('%d') do
    quotient = pair(quotient[1] * 10, quotient[2] * 10)
    rest = pair(rest[1] * 10 + part[1] * digit, rest[2] * 10 + part[2] * digit)
    while not less(rest, whole) do
      rest, quotient = minus(rest, whole), plus(quotient, ONE)
    end
  end
  return less(ZERO, rest) and plus(quotient, ONE) or quotient
end

local now
if ARGV[5] == '' then
  local time = redis.call('TIME')
  now = { tonumber(time[1]), time[2] * 1000 }
else
  now = parse(ARGV[5])
end

-- GCRA: how far the bucket is ahead of the clock, as a pair.
local gcra = {}

local function capacity(quota)
  return times(parse(quota.pace), quota.size)
end

function gcra.known(quota, text)
  return lesser(parse(text), times(capacity(quota), 2))
end

-- A clock that went back, as it may with another server, costs two full buckets at most.
function gcra.read(quota, text)
  return lesser(minus(parse(text), now), times(capacity(quota), 2))
end

function gcra.write(_, ahead)
  return format(plus(now, ahead)), ahead[1] * 1000 + math.ceil(ahead[2] / 1000000)
end

function gcra.tell(_, ahead)
  return format(ahead)
end

function gcra.is_full(ahead)
  return not less(ZERO, ahead)
end

function gcra.used(quota, ahead)
  return ahead, capacity(quota)
end

function gcra.refilled(quota, part, whole)
  return scale(part, whole, capacity(quota))
end

function gcra.fits(quota, ahead, units)
  return not less(capacity(quota), plus(ahead, times(parse(quota.pace), units)))
end

function gcra.add(quota, ahead, units)
  local added = plus(ahead, times(parse(quota.pace), units))
  return lesser(added, times(capacity(quota), 2))
end

function gcra.remove(quota, ahead, units)
  return minus(ahead, times(parse(quota.pace), units))
end

function gcra.more_used(_, a, b)
  return less(a, b) and b or a
end

-- Sliding windows: what was taken in each slot, the current one first. A slot is a 32nd of the
-- window, which is whole milliseconds: it is as many ticks of 31,250 ns as the window has
-- milliseconds. Ticks of the clock are exact (6e13 of them in our days).
local SLOTS, TICK, TICKS_PER_MILLI = 33, 31250, 32
local window = {}

local ticks = now[1] * (BILLION / TICK) + math.floor(now[2] / TICK)

function window.known(quota, text)
  local slots = { number = math.floor(ticks / quota.pace) }
  for units in text:gmatch('%d+') do
    if #slots < SLOTS then
      slots[#slots + 1] = tonumber(units)
    end
  end
  return slots
end

function window.read(quota, text)
  local number, list = text:match('^(%d+) (.*)$')
  local slots, passed = window.known(quota, list or ''), 0
  if number then
    passed = slots.number - number
  end
  if passed < 0 and passed >= -SLOTS then
    -- The clock went back a little: it counts as late as it was.
    slots.number = slots.number - passed
  end
  for _ = 1, math.min(passed, SLOTS) do
    table.insert(slots, 1, 0)
    slots[SLOTS + 1] = nil
  end
  return slots
end

function window.write(quota, slots)
  local youngest = 1
  while slots[youngest] == 0 do
    youngest = youngest + 1
  end
  local until_gone = (slots.number + SLOTS + 1 - youngest) * quota.pace - ticks
  local text = string.format('%.0f %s', slots.number, table.concat(slots, ','))
  return text, math.ceil(until_gone / TICKS_PER_MILLI)
end

-- The time until the current slot ends comes first. There may be more than 32 bits of ticks, and they
-- are short.
function window.tell(quota, slots)
  local left = times({ 0, TICK }, (slots.number + 1) * quota.pace - ticks)
  return format(minus(left, { 0, now[2] % TICK })) .. ' ' .. table.concat(slots, ',')
end

local function total(slots)
  local sum = 0
  for _, units in ipairs(slots) do
    sum = sum + units
  end
  return sum
end

function window.is_full(slots)
  return total(slots) == 0
end

function window.used(quota, slots)
  return pair(0, total(slots)), pair(0, quota.size)
end

function window.refilled(quota, part, whole)
  local units = scale(part, whole, pair(0, quota.size))
  return window.known(quota, tostring(units[1] * BILLION + units[2]))
end

function window.fits(quota, slots, units)
  return total(slots) + units <= quota.size
end

-- No more is owed than as much again.
function window.add(quota, slots, units)
  local room = math.max(2 * quota.size - total(slots), 0)
  slots[1] = (slots[1] or 0) + math.min(units, room)
  return slots
end

-- From the latest slots first.
function window.remove(_, slots, units)
  for age, held in ipairs(slots) do
    local removed = math.min(held, units)
    slots[age], units = held - removed, units - removed
  end
  return slots
end

-- The slots of a node are not those of Redis: what it knows of beyond them is added up.
function window.more_used(quota, a, b)
  return window.add(quota, a, math.max(total(b) - total(a), 0))
end

local ALGORITHMS = { gcra = gcra, window = window }

-- The state of a bucket under its quota of today, and whether Redis has another one.
local function load(key, quota)
  local algorithm = ALGORITHMS[quota.algorithm]
  local known = algorithm.known(quota, quota.known)
  local stored = redis.call('GET', key) or ''
  local name, size, pace, text = stored:match('^(%a+) (%d+) (%d+) (.*)$')
  local earlier = ALGORITHMS[name]
  if not earlier then
    -- Never there, full again, or lost: a server that was flushed refills nothing.
    return known, not algorithm.is_full(known)
  end
  local written = { size = tonumber(size), pace = pace }
  local state = earlier.read(written, text)
  local changed = name ~= quota.algorithm or pace ~= quota.pace or written.size ~= quota.size
  -- Half used up stays half used up. But a window of another limit holds what it held.
  if changed and not (algorithm == window and earlier == window and pace == quota.pace) then
    state = algorithm.refilled(quota, earlier.used(written, state))
  end
  if quota.went_on then
    state, changed = algorithm.more_used(quota, state, known), true
  end
  return state, changed
end

-- Until the bucket is full, and a second at least: nodes that have asked already do not know yet of
-- what was given back, and would say what they know of a bucket that is not there.
local function store(key, quota, state)
  local text, millis = ALGORITHMS[quota.algorithm].write(quota, state)
  text = string.format('%s %.0f %s %s', quota.algorithm, quota.size, quota.pace, text)
  redis.call('SET', key, text, 'PX', string.format('%.0f', math.max(millis, 1000)))
end

local mode, units, extra, returned = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local quotas, states, changed = {}, {}, {}
for at, key in ipairs(KEYS) do
  local argument = 5 * at
  quotas[at] = {
    algorithm = ARGV[argument + 1],
    size = tonumber(ARGV[argument + 2]),
    pace = ARGV[argument + 3],
    known = ARGV[argument + 4],
    went_on = ARGV[argument + 5] == '1',
  }
  states[at], changed[at] = load(key, quotas[at])
end

local function each(operation, n)
  for at, quota in ipairs(quotas) do
    states[at], changed[at] = ALGORITHMS[quota.algorithm][operation](quota, states[at], n), true
  end
end

local function all_fit(n)
  for at, quota in ipairs(quotas) do
    if not ALGORITHMS[quota.algorithm].fits(quota, states[at], n) then
      return false
    end
  end
  return true
end

local taken = 1
if returned > 0 then
  each('remove', returned)
end
if mode == 'take' then
  while extra > 0 and not all_fit(units + extra) do
    extra = math.floor(extra / 2)
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
for at, quota in ipairs(quotas) do
  if changed[at] then
    store(KEYS[at], quota, states[at])
  end
  reply[at + 2] = ALGORITHMS[quota.algorithm].tell(quota, states[at])
end
return reply

-- Decides a request on the cells in KEYS: the key's cell, and its consumer's cell if a quota is
-- counted per consumer. The request takes its units from all cells or from none.
--
-- A cell holds a state for each distinct quota that was applied to it lately. Each state counts all
-- units taken in the cell, whichever quota admitted them, in the terms of its own quota; units
-- beyond its capacity are debt. So no change of quota refills anything. There is one exception:
-- units that faster quotas admitted are counted only until the state is used up, so that it
-- recovers as soon as those quotas are no longer used; from then on it admits no more than they
-- would have. The key's cell also holds the per-consumer quotas, so that what the key itself used
-- still counts when its quota becomes per-key.
--
-- ARGV: the action, the units, how many more to take if available, how many to give back first, the
-- time in seconds and nanoseconds (empty except in tests), and the number of quotas. Then for each
-- quota four arguments:
--
--   'g', the burst, and the interval in nanoseconds as billions and remainder; or
--   'w', the limit, the window in milliseconds, and ''
--
-- and for each cell three: a digit per quota, '1' if the cell counts it; the cell as the calling
-- node knows it; and '1' if that node admitted requests without Redis since it last read the cell.
--
-- Returns whether the units were taken, how many more were, and the resulting text of each cell.
--
-- The text of a cell is space-separated numbers: the format version (1), the time in seconds and
-- nanoseconds, the milliseconds until all dropped states would be full, the number of states, and
-- for each state
--
--   g, burst, interval (2), used (2), full for, guards
--   w, limit, window, number of the current slot, debt, full for, slots, guards
--
-- where (2) means billions of nanoseconds and the remainder; "full for" is in milliseconds, or -1
-- if some units were not counted; "slots" and "guards" start with their count; and a guard is the
-- position of a state and the milliseconds for which it is also enforced. Times are relative to the
-- time of the cell, so a clock that steps back changes no state.
--
-- Numbers in Lua are doubles, exact up to 2^53 (9.007e15). Nanoseconds may exceed that, so they are
-- stored as two numbers: billions and remainder. For the clock, these are seconds and nanoseconds.

if ARGV[1] == 'probe' then
  -- A server that cannot do each of these cannot count.
  redis.call('TIME')
  redis.call('GET', KEYS[1])
  redis.call('SET', KEYS[1], '', 'PX', 1)
  return ARGV[2]
end

local BILLION = 1000000000
local VERSION = '1'
-- The most states in a cell. A key has at most eight quotas.
local MOST_STATES = 16
-- How long a state is kept after it is full, in milliseconds: an expired cell starts full.
local KEPT = 600000
local NOT_ALL_COUNTED = -1
-- About 570 years: no state is further ahead of the clock.
local MOST_SECONDS = 18000000000
local MOST_UNITS = 90000000000000
local MOST_MILLIS = 20000000000000
local SLOTS, TICK, TICKS_PER_MILLI = 33, 31250, 32
local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min

-- Pairs ---------------------------------------------------------------------------------------------

local function normal(high, low)
  local carry = floor(low / BILLION)
  high, low = high + carry, low - carry * BILLION
  if high >= MOST_SECONDS then
    return MOST_SECONDS, 0
  end
  return high, low
end

local function less(ah, al, bh, bl)
  return ah < bh or ah == bh and al < bl
end

-- The result is never below zero.
local function minus(ah, al, bh, bl)
  if less(ah, al, bh, bl) then
    return 0, 0
  end
  return normal(ah - bh, al - bl)
end

local function lesser(ah, al, bh, bl)
  if less(ah, al, bh, bl) then
    return ah, al
  end
  return bh, bl
end

-- `n` is an integer below 2^48.
local function times(h, l, n)
  local rh, rl, digits = 0, 0, {}
  repeat
    digits[#digits + 1] = n % 65536
    n = floor(n / 65536)
  until n == 0
  for at = #digits, 1, -1 do
    rh, rl = normal(rh * 65536, rl * 65536)
    rh, rl = normal(rh + h * digits[at], rl + l * digits[at])
  end
  return rh, rl
end

-- p * n / d, rounded up, where p is less than d, or nearly so. The product would overflow, so this
-- is long division, digit by digit.
local function scaled(ph, pl, nh, nl, dh, dl)
  local qh, ql, rh, rl = 0, 0, 0, 0
  for digit in string.format('%.0f%09.0f', nh, nl):gmatch('%d') do
    qh, ql = normal(qh * 10, ql * 10)
    rh, rl = normal(rh * 10 + ph * digit, rl * 10 + pl * digit)
    while not less(rh, rl, dh, dl) do
      rh, rl = minus(rh, rl, dh, dl)
      qh, ql = normal(qh, ql + 1)
    end
  end
  if rh > 0 or rl > 0 then
    qh, ql = normal(qh, ql + 1)
  end
  return qh, ql
end

-- The quotient of p and d, and the remainder.
local function divided(ph, pl, dh, dl)
  local times_in = floor((ph * BILLION + pl) / (dh * BILLION + dl))
  if times_in >= MOST_UNITS then
    return MOST_UNITS, 0, 0
  end
  -- The quotient of two doubles may be too large by one.
  local mh, ml = times(dh, dl, times_in)
  if less(ph, pl, mh, ml) then
    times_in = times_in - 1
    mh, ml = times(dh, dl, times_in)
  end
  local rh, rl = minus(ph, pl, mh, ml)
  if not less(rh, rl, dh, dl) then
    times_in = times_in + 1
    rh, rl = minus(rh, rl, dh, dl)
  end
  return times_in, rh, rl
end

-- The time -------------------------------------------------------------------------------------------

local now_s, now_n
if ARGV[5] == '' then
  local time = redis.call('TIME')
  now_s, now_n = tonumber(time[1]), time[2] * 1000
else
  now_s, now_n = tonumber(ARGV[5]), tonumber(ARGV[6])
end
-- A slot is 1/32 of the window. The window is whole milliseconds, so a slot has as many ticks of
-- 31,250 ns as the window has milliseconds. Ticks of the clock are exact (about 6e13 at present).
local ticks = now_s * (BILLION / TICK) + floor(now_n / TICK)

-- States ---------------------------------------------------------------------------------------------

-- A state that is full, and has been for long.
local function new_state(kind, burst, first, second)
  local state = { kind = kind, burst = burst, full_for = KEPT, guards = {} }
  if kind == 'g' then
    state.ih, state.il, state.h, state.l = first, second, 0, 0
    state.full_h, state.full_l = times(first, second, burst)
  else
    state.millis, state.slots, state.total, state.debt = first, {}, 0, 0
    state.number = floor(ticks / first)
  end
  return state
end

local function same(p, q)
  return p.kind == q.kind and p.burst == q.burst and p.ih == q.ih and p.il == q.il
    and p.millis == q.millis
end

local function is_full(state)
  if state.kind == 'g' then
    return state.h == 0 and state.l == 0
  end
  return state.total + state.debt == 0
end

local function window_of(state)
  return floor(state.millis / 1000), state.millis % 1000 * 1000000
end

-- Whether a / b > c / d, exactly: compares quotients, then those of the remainders.
local function is_greater(a, b, c, d)
  while true do
    local ab, cd = floor(a / b), floor(c / d)
    if ab ~= cd then
      return ab > cd
    end
    a, c = a - ab * b, c - cd * d
    if a == 0 or c == 0 then
      return a > c
    end
    a, b, c, d = d, c, b, a
  end
end

-- Whether p refills faster than q, exactly.
local function is_faster(p, q)
  if p.kind == 'g' and q.kind == 'g' then
    return less(p.ih, p.il, q.ih, q.il)
  elseif p.kind == 'g' then
    local h, l = times(p.ih, p.il, q.burst)
    return less(h, l, window_of(q))
  elseif q.kind == 'g' then
    local wh, wl = window_of(p)
    return less(wh, wl, times(q.ih, q.il, p.burst))
  end
  return is_greater(p.burst, p.millis, q.burst, q.millis)
end

-- Units per millisecond, approximately.
local function rate(state)
  if state.kind == 'g' then
    return 1000000 / (state.ih * BILLION + state.il)
  end
  return state.burst / state.millis
end

-- Begins the slots up to `number`. Debt moves into each slot as room appears.
local function roll(state, number)
  local slots, passed = state.slots, number - state.number
  local function one()
    table.insert(slots, 1, 0)
    state.total = state.total - (slots[SLOTS + 1] or 0)
    slots[SLOTS + 1] = nil
    local moved = max(min(state.debt, state.burst - state.total), 0)
    slots[1], state.total, state.debt = moved, state.total + moved, state.debt - moved
    state.number, passed = state.number + 1, passed - 1
  end
  local function some()
    for _ = 1, min(passed, SLOTS) do
      one()
    end
  end
  some()
  if passed > 0 and state.total + state.debt > 0 then
    -- From here on each turn of all slots pays off one full limit.
    local turns = min(floor(passed / SLOTS), floor(state.debt / state.burst))
    state.debt, passed = state.debt - turns * state.burst, passed - turns * SLOTS
    state.number = state.number + turns * SLOTS
    some()
    some()
  end
  state.number = number
end

-- The latest tick at which a window is full, now or in the past.
local function full_at(state)
  if state.total + state.debt == 0 then
    return 0
  end
  local youngest = 1
  if state.debt == 0 then
    while state.slots[youngest] == 0 do
      youngest = youngest + 1
    end
  end
  local turns = ceil(state.debt / state.burst)
  return (state.number + SLOTS * (turns + 1) + 1 - youngest) * state.millis
end

-- Advances a state to the current time.
local function advance(state, eh, el)
  local was_full, since = is_full(state), nil
  if state.kind == 'g' then
    local h, l = minus(eh, el, state.h, state.l)
    since = h * 1000 + floor(l / 1000000)
    state.h, state.l = minus(state.h, state.l, eh, el)
  else
    since = max(floor((ticks - full_at(state)) / TICKS_PER_MILLI), 0)
    local number = floor(ticks / state.millis)
    if number >= state.number then
      roll(state, number)
    elseif state.number - number > 1 then
      -- The clock stepped back. The units count as taken no later than in the next slot.
      state.number = number + 1
    end
  end
  if was_full then
    state.full_for = min(state.full_for + eh * 1000 + floor(el / 1000000), KEPT)
  elseif is_full(state) then
    state.full_for = min(since, KEPT)
  end
end

-- Makes the state used up for at least `millis`. Units in a window count as taken now.
local function use_up(state, millis)
  if state.kind == 'g' then
    local h, l = normal(state.full_h + floor(millis / 1000), state.full_l + millis % 1000 * 1000000)
    if less(state.h, state.l, h, l) then
      state.h, state.l = h, l
    end
  else
    local beyond = min(ceil(state.burst * (millis / state.millis)), MOST_UNITS)
    local all = max(state.total + state.debt, state.burst + beyond)
    state.total = max(state.total, state.burst)
    state.slots, state.debt = { state.total }, all - state.total
  end
  state.full_for = min(state.full_for, 0)
end

-- Counts units, whichever quota admitted them. With `beyond`, counts only until the state is used
-- up for that many milliseconds.
local function count(state, units, beyond)
  local is_left_out
  if state.kind == 'g' then
    local h, l = times(state.ih, state.il, units)
    h, l = normal(state.h + h, state.l + l)
    if beyond then
      local mh, ml = normal(state.full_h + floor(beyond / 1000), state.full_l + beyond % 1000 * 1000000)
      if less(mh, ml, h, l) then
        is_left_out, h, l = true, mh, ml
      end
      if less(h, l, state.h, state.l) then
        h, l = state.h, state.l
      end
    end
    state.h, state.l = h, l
  else
    local most = beyond and state.burst + ceil(state.burst * (beyond / state.millis))
    if most and state.total + state.debt + units > most then
      is_left_out = true
      use_up(state, beyond)
    else
      local taken = state.debt > 0 and 0 or max(min(units, state.burst - state.total), 0)
      state.slots[1], state.total = (state.slots[1] or 0) + taken, state.total + taken
      state.debt = min(state.debt + units - taken, MOST_UNITS)
    end
  end
  if is_left_out then
    state.full_for = NOT_ALL_COUNTED
  elseif state.full_for ~= NOT_ALL_COUNTED then
    state.full_for = 0
  end
end

-- Charges units even if the state is used up; at most two full buckets are used up or owed.
local function charge(state, units)
  if state.kind == 'g' then
    local h, l = times(state.ih, state.il, units)
    h, l = normal(state.h + h, state.l + l)
    local mh, ml = normal(state.full_h * 2, state.full_l * 2)
    if less(mh, ml, h, l) then
      h, l = mh, ml
    end
    if less(state.h, state.l, h, l) then
      state.h, state.l = h, l
    end
  else
    local added = max(min(units, 2 * state.burst - state.total - state.debt), 0)
    if state.debt > 0 then
      state.debt = state.debt + added
    else
      state.slots[1], state.total = (state.slots[1] or 0) + added, state.total + added
    end
  end
  state.full_for = min(state.full_for, 0)
end

-- Removes units: from debt first, then from the latest slots.
local function remove(state, units)
  if state.kind == 'g' then
    state.h, state.l = minus(state.h, state.l, times(state.ih, state.il, units))
    return
  end
  local paid = min(state.debt, units)
  state.debt, units = state.debt - paid, units - paid
  for age, held in ipairs(state.slots) do
    local removed = min(held, units)
    state.slots[age], state.total = held - removed, state.total - removed
    units = units - removed
  end
end

local function fits(state, units)
  if state.kind == 'g' then
    local h, l = times(state.ih, state.il, units)
    h, l = normal(state.h + h, state.l + l)
    return not less(state.full_h, state.full_l, h, l)
  end
  return state.debt == 0 and state.total + units <= state.burst
end

-- Adds what a node knows to be used beyond what is known here.
local function merge(state, other)
  if state.kind == 'g' then
    if less(state.h, state.l, other.h, other.l) then
      state.h, state.l, state.full_for = other.h, other.l, min(state.full_for, 0)
    end
  else
    -- A node's slots are not aligned with those of Redis. The difference is taken from the node's
    -- latest slots that hold more.
    local more = other.total + other.debt - state.total - state.debt
    for age, held in ipairs(other.slots) do
      local at = max(age + state.number - other.number, 1)
      while #state.slots < at do
        state.slots[#state.slots + 1] = 0
      end
      local added = min(held - state.slots[at], more, state.burst - state.total)
      if added > 0 then
        state.slots[at], state.total = state.slots[at] + added, state.total + added
        more, state.full_for = more - added, min(state.full_for, 0)
      end
    end
    if more > 0 then
      count(state, more)
    end
  end
end

-- Milliseconds until the state is full, rounded up.
local function until_full(state)
  if state.kind == 'g' then
    return state.h * 1000 + ceil(state.l / 1000000)
  end
  return max(ceil((full_at(state) - ticks) / TICKS_PER_MILLI), 0)
end

-- Cells ----------------------------------------------------------------------------------------------

local function read_cell(text)
  local tokens, at = {}, 0
  for token in text:gmatch('%S+') do
    tokens[#tokens + 1] = token
  end
  local function number()
    at = at + 1
    return assert(tonumber(tokens[at]))
  end
  local function state()
    at = at + 1
    local result
    if tokens[at] == 'g' then
      result = new_state('g', number(), number(), number())
      result.h, result.l, result.full_for = number(), number(), number()
    elseif tokens[at] == 'w' then
      result = new_state('w', number(), number())
      result.number, result.debt, result.full_for = number(), number(), number()
      for age = 1, number() do
        result.slots[age] = number()
        result.total = result.total + result.slots[age]
      end
    else
      error('no state')
    end
    for _ = 1, number() do
      result.guards[#result.guards + 1] = { at = number(), millis = number() }
    end
    return result
  end
  assert(tokens[1] == VERSION)
  at = 1
  local cell = { s = number(), n = number(), lost = number(), states = {} }
  for position = 1, number() do
    cell.states[position] = state()
  end
  assert(at == #tokens)
  for _, of in ipairs(cell.states) do
    for _, guard in ipairs(of.guards) do
      guard.state = assert(cell.states[guard.at])
    end
  end
  return cell
end

local function write_cell(cell)
  local text = { VERSION, now_s, now_n, cell.lost, #cell.states }
  local function put(...)
    for _, value in ipairs({ ... }) do
      text[#text + 1] = value
    end
  end
  local positions = {}
  for position, state in ipairs(cell.states) do
    positions[state] = position
  end
  for _, state in ipairs(cell.states) do
    put(state.kind, state.burst)
    if state.kind == 'g' then
      put(state.ih, state.il, state.h, state.l, state.full_for)
    else
      local slots, held = state.slots, #state.slots
      while slots[held] == 0 do
        held = held - 1
      end
      put(state.millis, state.number, state.debt, state.full_for, held)
      for age = 1, held do
        text[#text + 1] = slots[age]
      end
    end
    local guards = {}
    for _, guard in ipairs(state.guards) do
      if positions[guard.state] then
        guards[#guards + 1] = guard
      end
    end
    put(#guards)
    for _, guard in ipairs(guards) do
      put(positions[guard.state], guard.millis)
    end
  end
  -- All of these numbers have at most 14 digits, so none loses precision.
  return table.concat(text, ' ')
end

-- Advances all states. A cell that has not been used for long starts afresh.
local function advance_cell(cell)
  local eh, el = minus(now_s, now_n, cell.s, cell.n)
  -- If the clock stepped back, the cell continues from the current time.
  cell.is_changed = less(now_s, now_n, cell.s, cell.n)
  local millis = eh * 1000 + floor(el / 1000000)
  cell.lost = max(cell.lost - millis, 0)
  for _, state in ipairs(cell.states) do
    advance(state, eh, el)
    local guards = {}
    for _, guard in ipairs(state.guards) do
      guard.millis = guard.millis - millis
      if guard.millis > 0 then
        guards[#guards + 1] = guard
      end
    end
    state.guards = guards
  end
  local is_used = cell.lost > 0
  for _, state in ipairs(cell.states) do
    is_used = is_used or not is_full(state) or state.full_for < KEPT
  end
  if not is_used then
    cell.states = {}
  end
end

-- Starts `state` with what `from` has counted, which refills no faster. A window also counts what
-- has refilled within it, unless nothing was taken for that long.
local function carry_over(state, from)
  local units, rh, rl = 0, 0, 0
  local within = state.kind == 'w' and max(state.millis - max(from.full_for, 0), 0) or 0
  if from.kind == 'g' then
    local h, l = normal(from.h + floor(within / 1000), from.l + within % 1000 * 1000000)
    units, rh, rl = divided(h, l, from.ih, from.il)
    if state.kind == 'w' and (rh > 0 or rl > 0) then
      units = units + 1
    end
  else
    local whole, rest = floor(within / from.millis), within % from.millis
    local h, l = scaled(floor(rest / BILLION), rest % BILLION, 0, from.burst,
      floor(from.millis / BILLION), from.millis % BILLION)
    units = from.total + from.debt + whole * from.burst + h * BILLION + l
  end
  units = min(units, MOST_UNITS)
  if state.kind == 'g' then
    local h, l = times(state.ih, state.il, units)
    if rh > 0 or rl > 0 then
      local sh, sl = scaled(rh, rl, state.ih, state.il, from.ih, from.il)
      h, l = normal(h + sh, l + sl)
    end
    state.h, state.l = h, l
  else
    count(state, units)
  end
  if is_full(state) then
    state.full_for = from.full_for
  end
end

-- How long `guard` is enforced together with `state`, in milliseconds: until what `state` alone
-- admits from now on is no more than `guard` would have admitted since any earlier time.
local function guarded_for(state, guard)
  local units = state.burst
  if guard.kind == 'g' then
    units = units - guard.burst + (guard.h * BILLION + guard.l) / (guard.ih * BILLION + guard.il)
  else
    units = units + guard.total + guard.debt
  end
  if units <= 0 then
    return 0
  end
  local faster = rate(guard) - rate(state)
  -- The difference of two nearly equal doubles is meaningless.
  if faster <= rate(guard) * 1e-12 then
    return MOST_MILLIS
  end
  return min(ceil(units / faster * (1 + 1e-9)) + 1, MOST_MILLIS)
end

-- Starts `state` with the slots of a window of the same length, whatever the limits.
local function copy_slots(state, from)
  for age, held in ipairs(from.slots) do
    state.slots[age] = held
  end
  state.number, state.total, state.debt = from.number, from.total, from.debt
  -- What exceeds the limit is owed, the latest first.
  local excess = max(state.total - state.burst, 0)
  state.total, state.debt = state.total - excess, min(state.debt + excess, MOST_UNITS)
  for age, held in ipairs(state.slots) do
    local owed = min(held, excess)
    state.slots[age], excess = held - owed, excess - owed
  end
  local moved = max(min(state.debt, state.burst - state.total), 0)
  if moved > 0 then
    state.slots[1] = (state.slots[1] or 0) + moved
    state.total, state.debt = state.total + moved, state.debt - moved
  end
  state.full_for = from.full_for
end

-- Starts a state for a quota that has none among the others.
--
-- 1. If a window of the same length is faster, copies its slots: it admits more than the new one.
-- 2. Otherwise starts with what the fastest state that refills no faster has counted, which is no
--    less than the new one would have counted itself; or full, if there is none. States that refill
--    faster are enforced beside it for a while.
local function join(others, state)
  local fastest, larger, faster = nil, nil, {}
  for _, other in ipairs(others) do
    if not is_faster(other, state) then
      if not fastest or is_faster(other, fastest) then
        fastest = other
      end
    else
      faster[#faster + 1] = other
      local is_twin = state.kind == 'w' and other.millis == state.millis
      if is_twin and not (larger and larger.burst <= other.burst) then
        larger = other
      end
    end
  end
  if #others > 0 then
    state.full_for = 0
  end
  if larger then
    copy_slots(state, larger)
    for at, guard in ipairs(larger.guards) do
      state.guards[at] = { state = guard.state, millis = guard.millis }
    end
    -- Another that refills as fast may remember more.
    if fastest and not is_faster(state, fastest) then
      local alone = new_state('w', state.burst, state.millis)
      carry_over(alone, fastest)
      local missing = alone.total + alone.debt - state.total - state.debt
      if missing > 0 then
        count(state, missing)
      end
    end
    return
  end
  if fastest and state.kind == 'w' and fastest.millis == state.millis then
    copy_slots(state, fastest)
  elseif fastest then
    carry_over(state, fastest)
  end
  for _, guard in ipairs(faster) do
    local millis = guarded_for(state, guard)
    if millis > 0 then
      state.guards[#state.guards + 1] = { state = guard, millis = millis }
    end
  end
end

local function find(states, state)
  for _, other in ipairs(states) do
    if same(other, state) then
      return other
    end
  end
end

-- The quotas of the request ------------------------------------------------------------------------

local quotas, argument = {}, 7
for at = 1, tonumber(ARGV[argument]) do
  local kind, burst, first, second = unpack(ARGV, argument + 1, argument + 4)
  quotas[at] = { kind, tonumber(burst), tonumber(first), tonumber(second) }
  argument = argument + 4
end

-- Drops states that have long been full. If there are still too many, drops the one that is full
-- first.
local function trim(cell)
  local function until_unused(state)
    local millis = until_full(state)
    for _, other in ipairs(cell.states) do
      for _, guard in ipairs(other.guards) do
        if guard.state == state then
          millis = max(millis, guard.millis)
        end
      end
    end
    return millis
  end
  local first, first_millis
  for position = #cell.states, cell.of_request + 1, -1 do
    local millis = until_unused(cell.states[position])
    if millis == 0 and cell.states[position].full_for >= KEPT then
      table.remove(cell.states, position)
      first = first and first - 1
    elseif not first or millis < first_millis then
      first, first_millis = position, millis
    end
  end
  if #cell.states <= MOST_STATES or not first then
    return
  end
  local dropped = table.remove(cell.states, first)
  -- Until it would be full, no quota may join as if it had never existed, and none may be used
  -- without the guard.
  cell.lost = max(cell.lost, min(first_millis, MOST_MILLIS))
  for _, state in ipairs(cell.states) do
    for _, guard in ipairs(state.guards) do
      if guard.state == dropped then
        use_up(state, cell.lost)
      end
    end
  end
  return trim(cell)
end

local cells = {}
for at, key in ipairs(KEYS) do
  local counted_here, known_text, diverged = unpack(ARGV, argument + 1, argument + 3)
  argument = argument + 3
  local stored, cell, known = redis.call('GET', key)
  if stored then
    local is_readable
    is_readable, cell = pcall(read_cell, stored)
    if not is_readable then
      return redis.error_reply('NOTACELL ' .. key)
    end
  end
  if known_text ~= '' and (not cell or diverged == '1') then
    known = read_cell(known_text)
    for _, state in ipairs(known.states) do
      if state.kind == 'w' then
        -- A node's slots are not aligned with those of Redis, and may begin earlier.
        state.number = floor(ticks / state.millis) + 1
      end
    end
  end
  if cell then
    advance_cell(cell)
  else
    -- Never existed, expired, or lost: flushing the server refills nothing.
    cell = known or { lost = 0, states = {} }
    cell.is_changed = known and #known.states > 0
  end
  local others, ours = cell.states, {}
  for position, quota in ipairs(quotas) do
    if counted_here:sub(position, position) == '1' then
      local state = new_state(unpack(quota))
      if not find(ours, state) then
        local found = find(others, state)
        if not found then
          join(others, state)
          if cell.lost > 0 then
            use_up(state, cell.lost)
          end
          cell.is_changed = cell.is_changed or #others > 0
        end
        ours[#ours + 1] = found or state
      end
    end
  end
  -- The states of the request come first, then their guards, then the others.
  local states, is_in = {}, {}
  local function put(state)
    if not is_in[state] then
      states[#states + 1], is_in[state] = state, true
    end
  end
  for _, state in ipairs(ours) do
    put(state)
  end
  for _, state in ipairs(ours) do
    for _, guard in ipairs(state.guards) do
      put(guard.state)
    end
  end
  for _, state in ipairs(others) do
    put(state)
  end
  cell.states, cell.of_request = states, #ours
  if diverged == '1' and known and known ~= cell then
    for _, state in ipairs(known.states) do
      local found = find(cell.states, state)
      if found then
        merge(found, state)
      end
    end
    cell.is_changed = true
  end
  cells[at] = cell
end

local function each(operation, units)
  for _, cell in ipairs(cells) do
    for position, state in ipairs(cell.states) do
      operation(state, units, cell, position)
    end
    cell.is_changed = true
  end
end

-- The states of the request count what they admit. So does any other state; but if all states of
-- the request refill at least as fast, it counts only until it is used up. What sliding windows
-- admit comes in steps, so beside one that refills at least as fast it counts until it is used up
-- for the length of that window.
local function take(state, units, cell, position)
  if position <= cell.of_request then
    return count(state, units)
  end
  for ours = 1, cell.of_request do
    if is_faster(state, cell.states[ours]) then
      return count(state, units)
    end
  end
  local beyond = 0
  for _, other in ipairs(cell.states) do
    if other.kind == 'w' and other ~= state and not is_faster(state, other) then
      beyond = max(beyond, other.millis)
    end
  end
  count(state, units, beyond)
end

-- Units that were not counted are not given back.
local function give_back(state, units, cell, position)
  if position <= cell.of_request or state.full_for ~= NOT_ALL_COUNTED then
    remove(state, units)
  end
end

local function all_fit(units)
  for _, cell in ipairs(cells) do
    for position = 1, cell.of_request do
      local state = cell.states[position]
      if not fits(state, units) then
        return false
      end
      for _, guard in ipairs(state.guards) do
        if not fits(guard.state, units) then
          return false
        end
      end
    end
  end
  return true
end

local mode, units, extra, returned = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = 1
if returned > 0 then
  each(give_back, returned)
end
if mode == 'take' then
  while extra > 0 and not all_fit(units + extra) do
    extra = floor(extra / 2)
  end
  if all_fit(units + extra) then
    each(take, units + extra)
  else
    taken = 0
  end
elseif mode == 'charge' then
  each(charge, units)
elseif mode == 'give_back' then
  each(give_back, units)
end

local reply = { taken, extra }
for at, cell in ipairs(cells) do
  trim(cell)
  local text = write_cell(cell)
  if cell.is_changed then
    local millis = 1000
    for _, state in ipairs(cell.states) do
      millis = max(millis, min(until_full(state), MOST_MILLIS) + KEPT - max(state.full_for, 0))
    end
    redis.call('SET', KEYS[at], text, 'PX', string.format('%.0f', millis))
  end
  reply[#reply + 1] = text
end
return reply

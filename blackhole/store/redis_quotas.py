"""The part of the Lua script that takes from quotas: see `blackhole.rules.quotas`, which does the same."""

from __future__ import annotations

from typing import Final

from blackhole.rules.quotas import COUNTER_BITS, RECORD_BITS, TOKEN_PARTS

MAX_COUNTERS: Final = RECORD_BITS // COUNTER_BITS[0]
"""Counters of a sliding window, at most."""

COUNTERS: Final = ", ".join(f"{{{2**bits}, {RECORD_BITS // bits}}}" for bits in COUNTER_BITS)
"""The first limit that is too large for a counter, and how many counters there are of this size."""

QUOTA_FUNCTIONS: Final = f"""
function change.spend(key, amount, limit, period)
  local count, first = read_record(key)
  if count == 0 or now - first >= period * SECOND then
    count, first = 0, now
  end
  if count + amount > tonumber(limit) then
    return 1
  end
  write_record(key, count + amount, first, first + period * SECOND - now)
  return 0
end

-- The record of a sliding window: when its newest part began, and the counters from the newest on.
local function read_counters(key, wanted)
  local text = redis.pcall('GET', key)
  if is_of_wrong_type(text) or not text or #text > 20 + 11 * {MAX_COUNTERS} then
    return now, {{}}
  end
  local begin, listed = string.match(text, '^(%d+) ([%d,]+)$')
  begin = tonumber(begin)
  if not begin or begin > now + DAY then
    return now, {{}}
  end
  local counters = {{}}
  for digits in string.gmatch(listed, '%d+') do
    counters[#counters + 1] = tonumber(digits)
  end
  if #counters ~= wanted then
    return now, {{}}
  end
  return begin, counters
end

function change.spend_sliding(key, amount, limit, period)
  limit = tonumber(limit)
  local wanted = 0
  for _, size in ipairs({{ {COUNTERS} }}) do
    if limit < size[1] then
      wanted = size[2]
      break
    end
  end
  local parts = wanted - 1
  local length = math.max(1, math.floor(math.floor(period * SECOND) / parts))
  local begin, before = read_counters(key, wanted)
  local used = false
  for _, count in ipairs(before) do
    used = used or count > 0
  end
  local steps = math.max(0, math.floor((now - begin) / length))
  if not used or steps > parts then
    begin, before, steps = now, {{}}, 0
  end
  begin = begin + steps * length
  local counters, taken = {{}}, 0
  for number = 1, wanted do
    counters[number] = before[number - steps] or 0
    if number < wanted then
      taken = taken + counters[number]
    end
  end
  local oldest = counters[wanted]
  if oldest > 0 then
    taken = taken + math.floor((oldest - 1) * ((length - (now - begin)) / length))
  end
  if taken + amount > limit then
    return 1
  end
  counters[1] = counters[1] + amount
  for number = 1, wanted do
    counters[number] = decimal(counters[number])
  end
  local lasts = decimal(math.max(1, math.ceil(wanted * length / 1000)))
  redis.call('SET', key, decimal(begin) .. ' ' .. table.concat(counters, ','), 'PX', lasts)
  return 0
end

function change.spend_tokens(key, amount, burst, limit, period)
  local missing, _, last = read_record(key)
  local passed = math.max(0, now - last)
  missing = math.max(0, missing - math.ceil(passed * limit / period)) + amount * {TOKEN_PARTS}
  if missing > burst * {TOKEN_PARTS} + math.ceil(limit / period) then
    return 1
  end
  write_record(key, missing, now, missing * period / limit)
  return 0
end
"""
"""Updates of quotas, by the names of the Python functions that do the same."""

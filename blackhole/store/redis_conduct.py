"""The part of the Lua script for limits by conduct: see `blackhole.rules.conduct`, which does the same."""

from __future__ import annotations

from typing import Final

from blackhole.rules.conduct import MAX_PERIODS, MAX_REFUSED, PERIOD_BITS, REFUSED_BITS, USED_BITS

CONDUCT_FUNCTIONS: Final = f"""
local function split(number, size)
  return number % size, math.floor(number / size)
end

function change.spend_growing(key, amount, limit, factor, most, period, every, steps)
  amount, limit, factor, most, steps =
    tonumber(amount), tonumber(limit), tonumber(factor), tonumber(most), tonumber(steps)
  local count, begin = read_record(key)
  local used, number, exceeded, step
  used, count = split(count, 2 ^ {USED_BITS})
  number, count = split(count, 2 ^ {PERIOD_BITS})
  exceeded, step = split(count, 2)
  every = math.floor(every * SECOND)
  local passed = math.floor(math.max(0, now - begin) / every)
  if passed > 0 then
    step = math.max(0, math.min(steps, step + 1 - exceeded) - (passed - 1))
    begin = begin + passed * every
    used, number, exceeded = 0, 0, 0
  end
  local current = math.min({MAX_PERIODS}, math.floor(math.max(0, now - begin) / math.floor(period * SECOND)))
  if current ~= number then
    used, number = 0, current
  end
  local blocked = used + amount > math.floor(math.min(most, limit * factor ^ step))
  if blocked then
    exceeded = 1
  else
    used = used + amount
  end
  count = ((step * 2 + exceeded) * 2 ^ {PERIOD_BITS} + number) * 2 ^ {USED_BITS} + used
  write_record(key, count, begin, (step + 2) * every)
  return blocked and 1 or 0
end

function change.weigh_refusals(key, more, more_refused, limit, share, period)
  local count, first = read_record(key)
  if count == 0 or now - first >= period * SECOND then
    count, first = 0, now
  end
  local recipients, refused = split(count, 2 ^ {REFUSED_BITS})
  if tonumber(more_refused) == 0 and refused >= tonumber(limit) and refused > share * recipients then
    return 1
  end
  recipients = math.min({MAX_REFUSED}, recipients + more)
  refused = math.min({MAX_REFUSED}, refused + more_refused)
  count = refused * 2 ^ {REFUSED_BITS} + recipients
  write_record(key, count, first, first + period * SECOND - now)
  return 0
end
"""
"""Updates of limits by conduct, by the names of the Python functions that do the same."""

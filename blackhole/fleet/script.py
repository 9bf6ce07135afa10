"""The Lua scripts of a fleet: Redis runs each without interruption.

A machine writes absolute counters, and the script adds to the total what is new in them. So a write that is
repeated changes nothing, whether or not its answer arrived.

All keys of a fleet have its name in braces: in a cluster they are in one slot.
"""

from __future__ import annotations

from typing import Final

KEEP_SECONDS: Final = 7 * 86400
"""Seconds after its last write for which the counters of one machine are kept, and the total of a fleet."""

MEMBER_SECONDS: Final = 3600
"""Seconds after its last write for which a machine is listed."""

LIVE_SECONDS: Final = 10
"""Seconds after its last write for which a machine counts as alive."""

MAX_FIELDS: Final = 8192
"""Fields of the total. Names of rules and listeners that come later are counted under one name."""

WRITE: Final = f"""
local total, figures, members, seen, order = unpack(KEYS)
local id, candidate, summary, age = unpack(ARGV, 1, 4)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local epoch = redis.call('HGET', total, 'epoch')
if not epoch then
  epoch = candidate
  redis.call('HSET', total, 'epoch', epoch, 'began', string.format('%.6f', now))
end

local many = redis.call('HLEN', total) >= {MAX_FIELDS}
for position = 5, #ARGV, 2 do
  local field, count = ARGV[position], tonumber(ARGV[position + 1])
  local before = tonumber(redis.call('HGET', figures, field) or 0)
  if count > before then
    local counted, kind = field, string.match(field, '^(%a+) ')
    if many and (kind == 'rule' or kind == 'listener') and redis.call('HEXISTS', total, field) == 0 then
      counted = kind .. ' others'
    end
    redis.call('HINCRBY', total, counted, string.format('%.0f', count - before))
    redis.call('HSET', figures, field, string.format('%.0f', count))
  end
end
redis.call('EXPIRE', total, {KEEP_SECONDS})
redis.call('EXPIRE', figures, {KEEP_SECONDS})

if summary ~= '' then
  redis.call('HSET', members, id, summary)
  redis.call('ZADD', seen, string.format('%.6f', now - age), id)
end
local until_then = string.format('%.6f', now - {MEMBER_SECONDS})
local gone = redis.call('ZRANGEBYSCORE', seen, '-inf', until_then, 'LIMIT', 0, 100)
for _, other in ipairs(gone) do
  redis.call('HDEL', members, other)
  redis.call('ZREM', seen, other)
end
redis.call('EXPIRE', members, {KEEP_SECONDS})
redis.call('EXPIRE', seen, {KEEP_SECONDS})
redis.call('EXPIRE', order, {KEEP_SECONDS})

local alive = redis.call('ZCOUNT', seen, string.format('(%.6f', now - {LIVE_SECONDS}), '+inf')
return {{epoch, alive, redis.call('HGET', order, 'number') or '0'}}
"""
"""KEYS: the total, the counters of this machine, the summaries of all machines, when they were last seen, and
the order in force. ARGV: the id of the machine, a new epoch, its summary (empty: write counters only), the
seconds since it was alive; then fields and counts.

It returns the epoch, which changes when Redis has lost the total, the number of machines that are alive, and
the number of the order."""

PUBLISH: Final = """
local order, channel = unpack(KEYS)
local expected, is_new, name, text, rules = unpack(ARGV)
local time = redis.call('TIME')
local number = redis.call('HGET', order, 'number') or '0'
if number ~= expected then
  return 0
end
if is_new == '1' then
  redis.call('HSET', order, 'name', name, 'text', text, 'at',
    string.format('%.6f', time[1] + time[2] / 1000000))
end
redis.call('HSET', order, 'number', number + 1, 'rules', rules)
redis.call('PUBLISH', channel, number + 1)
return number + 1
"""
"""Puts an order in force. KEYS: the order, and the channel on which it is announced. ARGV: the number of the
order that it was made of, "1" if the scenario changes, its name and text, and the one-shot rules as JSON.

It returns the number of the order; 0 if another one came in between."""

RESTORE: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'number') or 0) < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'number', ARGV[1], 'name', ARGV[2],
    'text', ARGV[3], 'at', ARGV[4], 'rules', ARGV[5])
end
return 1
"""
"""Writes an order again that Redis has lost. KEYS: the order. ARGV: its fields."""

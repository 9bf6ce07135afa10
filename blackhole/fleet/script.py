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
"""Seconds after its last write for which a machine is listed, and the counters of one that left are kept."""

MAX_FOLDED: Final = 10
"""Machines that one write adds to those that are forgotten."""

RUNS_VERSION: Final = " version"
"""The field of the runs that has their version; no run can have this name."""

LIVE_SECONDS: Final = 10
"""Seconds after its last write for which a machine counts as alive."""

MAX_FIELDS: Final = 8192
"""Fields of the total. Names of rules and listeners that come later are counted under one name."""

NAMESPACE_KEY_SECONDS: Final = 7200
"""Seconds since its last use for which what belongs to a namespace is kept at most. It is removed before,
with the namespace; what a machine writes that does not know of that yet ends by itself."""

WRITE: Final = f"""
local total, figures, members, seen, order, left, runs, past, namespaces = unpack(KEYS)
local id, candidate, summary, age, generation = unpack(ARGV, 1, 5)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function keep(key, seconds)
  redis.call('EXPIRE', key, seconds)
end

local function text_of(number)
  return string.format('%.6f', number)
end

local epoch, current = unpack(redis.call('HMGET', total, 'epoch', 'generation'))
if not epoch then
  epoch = candidate
  redis.call('HSET', total, 'epoch', epoch, 'began', text_of(now))
end
local others = redis.call('ZCOUNT', seen, '(' .. text_of(now - {LIVE_SECONDS}), '+inf')
if not current or (others == 0 and redis.call('EXISTS', figures) == 0) then
  if current then
    redis.call('HDEL', total, 'messages ' .. current)
  end
  current = not current and generation ~= '' and generation or candidate
  redis.call('HSET', total, 'generation', current)
end

local counted_by_name = {{rule = true, passed = true, limited = true, listener = true}}
local many, sums = redis.call('HLEN', total) >= {MAX_FIELDS}, {{}}
for position = 6, #ARGV, 2 do
  local field, count = ARGV[position], tonumber(ARGV[position + 1])
  local before = tonumber(redis.call('HGET', figures, field) or 0)
  local sum, counted, crowded = total, field, many
  local namespace, inner = string.match(field, '^in (%x+) (.+)$')
  if namespace then
    sum, counted = string.sub(total, 1, -6) .. 'namespace:' .. namespace .. ':total', inner
    crowded = redis.call('HLEN', sum) >= {MAX_FIELDS}
    sums[sum] = true
  end
  local kind = string.match(counted, '^(%a+) ')
  if not count then
    redis.call('HDEL', figures, field)
  elseif count > before and (kind ~= 'messages' or field == 'messages ' .. current) then
    if crowded and counted_by_name[kind] and redis.call('HEXISTS', sum, counted) == 0 then
      counted = kind .. ' others'
    end
    redis.call('HINCRBY', sum, counted, string.format('%.0f', count - before))
    redis.call('HSET', figures, field, string.format('%.0f', count))
  end
end
for sum in pairs(sums) do
  keep(sum, {NAMESPACE_KEY_SECONDS})
end
keep(total, {KEEP_SECONDS})
keep(figures, {KEEP_SECONDS})

if summary ~= '' then
  redis.call('HSET', members, id, summary)
  redis.call('ZADD', seen, text_of(now - math.abs(age)), id)
  if tonumber(age) > 0 then
    redis.call('ZADD', left, text_of(now - age), id)
  else
    redis.call('ZREM', left, id)
  end
end

local function fold(set, seconds)
  local gone = redis.call('ZRANGEBYSCORE', set, '-inf', text_of(now - seconds), 'LIMIT', 0, {MAX_FOLDED})
  for _, other in ipairs(gone) do
    local key = string.sub(figures, 1, -1 - #id) .. other
    local counts = redis.call('HGETALL', key)
    for position = 1, #counts, 2 do
      local kind = string.match(counts[position], '^(%a+) ')
      if kind ~= 'in' and (kind ~= 'messages' or counts[position] == 'messages ' .. current) then
        redis.call('HINCRBY', past, counts[position], counts[position + 1])
      end
    end
    redis.call('DEL', key)
    redis.call('HDEL', members, other)
    redis.call('ZREM', seen, other)
    redis.call('ZREM', left, other)
  end
end
fold(left, {MEMBER_SECONDS})
fold(seen, {KEEP_SECONDS})
for _, key in ipairs({{members, seen, order, left, runs, past}}) do
  keep(key, {KEEP_SECONDS})
end

local alive = redis.call('ZCOUNT', seen, '(' .. text_of(now - {LIVE_SECONDS}), '+inf')
local mark, messages = unpack(redis.call('HMGET', total, 'mark', 'messages ' .. current))
return {{epoch, alive, redis.call('HGET', order, 'number') or '0', redis.call('ZCARD', seen), mark or '0',
  current, messages or '0', redis.call('HGET', runs, '{RUNS_VERSION}') or '0',
  redis.call('HGET', namespaces, ' number') or '0'}}
"""
"""KEYS: the total, the counters of this machine, the summaries of all machines, when they were last seen, the
order in force, when machines have left, the runs, the counters of machines that are forgotten, and the index
of namespaces. ARGV: the id of the machine, a new epoch, its summary (empty: write counters only), the seconds
since it was alive (0 if it is, negative if it has not said that it leaves), the generation that it knows;
then fields and counts. A count that is no number removes the field, and leaves the sum as it is.

A field "in ID NAME" is that of a namespace, which has a total of its own. It ends with the namespace.

A generation lasts from the first machine that joins, while none is alive, to the last that leaves. A machine
counts its messages under the name of the generation too, for `stop_after`.

The counters of a machine are kept apart while it may write again, or while they may have to be restored. Then
they are added to those of the forgotten machines, and nothing of it is left: an hour after it has left, or
seven days after the last write of a machine that did not say so.

It returns the epoch, which changes when Redis has lost the total, the number of machines that are alive, the
number of the order, the number of machines that are kept apart, the number of the last call of MARK, the
generation, its messages, the version of the runs, and the number of the last order to a namespace."""

MARK: Final = """
return redis.call('HINCRBY', KEYS[1], 'mark', 1)
"""
"""Asks all machines to write. KEYS: the total. It returns the number that a machine then writes of itself."""

START_RUN: Final = f"""
local runs = KEYS[1]
local name, text, dropped, most = unpack(ARGV)
if redis.call('HEXISTS', runs, name) == 1 then
  return 0
end
if dropped ~= '' then
  redis.call('HDEL', runs, dropped)
end
redis.call('HINCRBY', runs, '{RUNS_VERSION}', 1)
if redis.call('HLEN', runs) > tonumber(most) then
  return 1
end
redis.call('HSET', runs, name, text)
redis.call('EXPIRE', runs, {KEEP_SECONDS})
return 2
"""
"""Starts a run. KEYS: the runs. ARGV: its name, its text, the name of the run that makes room for it, and the
most runs. It returns 0 if the name is taken, 1 if there are too many, and 2 if the run was started."""

STOP_RUN: Final = f"""
local runs = KEYS[1]
local name, text = unpack(ARGV)
local before = redis.call('HGET', runs, name)
if not before or cjson.decode(before).ended ~= 0 then
  return 0
end
redis.call('HSET', runs, name, text)
redis.call('HINCRBY', runs, '{RUNS_VERSION}', 1)
redis.call('EXPIRE', runs, {KEEP_SECONDS})
return 1
"""
"""Stops a run. KEYS: the runs. ARGV: its name and its new text. It returns 0 if it has ended already."""

RESTORE_RUN: Final = f"""
local runs = KEYS[1]
local name, text, ended = unpack(ARGV)
local before = redis.call('HGET', runs, name)
if not before or (ended == '1' and cjson.decode(before).ended == 0) then
  redis.call('HSET', runs, name, text)
  redis.call('HINCRBY', runs, '{RUNS_VERSION}', 1)
end
return 1
"""
"""Writes a run again that Redis has lost. KEYS: the runs. ARGV: its name, its text, and "1" if it has
ended."""

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

WINDOWS_TOLERANCE: Final = 1.0
"""Seconds by which a machine's clock of windows has to be older than the common one to take its place."""

SHARE_WINDOWS: Final = f"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local own, began = now - ARGV[1], tonumber(redis.call('GET', KEYS[1]) or '')
if not (began and 0 < began and began <= now and began <= own + {WINDOWS_TOLERANCE}) then
  began = own
end
redis.call('SET', KEYS[1], string.format('%.6f', began), 'EX', {LIVE_SECONDS})
return string.format('%.6f', now - began)
"""
"""Agrees on when windows began: with the first machine that has them. KEYS: when that was. ARGV: how many
seconds ago it was for this machine. It returns how many seconds ago it was for all.

The key expires when no machine that has these windows is alive. A machine that comes back to an empty store
writes what it knows."""

STREAM_SECONDS: Final = 30
"""Seconds for which changes of outcomes are kept for other machines."""

ADD_OUTCOMES: Final = f"""
local time = redis.call('TIME')
local oldest = string.format('%.0f', (time[1] - {STREAM_SECONDS}) * 1000)
redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', 'machine', ARGV[1], 'changes', ARGV[2])
redis.call('EXPIRE', KEYS[1], {2 * STREAM_SECONDS})
local pause = tonumber(ARGV[3])
if pause > 0 and redis.call('SET', KEYS[2], '', 'NX', 'PX', pause) then
  redis.call('PUBLISH', KEYS[1], '')
end
return 1
"""
"""Adds changes of outcomes, and announces them. KEYS: the stream, whose name the channel has too, and what is
there while nothing is announced. ARGV: the machine, the changes, and the milliseconds for which nothing more
is announced; 0: they are not announced either.

However many machines there are, there is one announcement in that time. Each machine reads once more when it
has passed."""

READ_OUTCOMES: Final = """
local time = redis.call('TIME')
local found = {math.floor(time[1] * 1000 + time[2] / 1000)}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local machine, changes = entry[2][2], entry[2][4]
  for _, word in ipairs({entry[1], machine or '', changes or ''}) do
    found[#found + 1] = word
  end
end
return found
"""
"""Reads changes of outcomes. KEYS: the stream. ARGV: the entry that was read last, and how many to read.

It returns the clock in milliseconds since 1970, and for each entry its id, its machine and its changes."""

OUTCOME_SECRET: Final = f"""
redis.call('SET', KEYS[1], ARGV[1], 'NX')
redis.call('EXPIRE', KEYS[1], {KEEP_SECONDS})
return redis.call('GET', KEYS[1])
"""
"""Returns the secret of a fleet. KEYS: its key. ARGV: the secret to use if there is none."""

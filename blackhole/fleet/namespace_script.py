"""The Lua scripts for the namespaces of a fleet: Redis runs each without interruption.

The index has a field for each namespace: its id, the number of the order that changed it last, and when it
was made. A field of its own has the number of the last order to any of them. What belongs to a namespace has
keys with its id, so none has the name of a user. A namespace that is made again has another id.
"""

from __future__ import annotations

from typing import Final

from blackhole.fleet.script import KEEP_SECONDS, NAMESPACE_KEY_SECONDS

INDEX_NUMBER: Final = " number"
"""The field of the index that has the number of the last order; no namespace can have this name."""

PUBLISHED, CONFLICT, FULL = range(3)
"""What became of an order: it is in force; another one came in between; there is no room for a namespace."""

FUNCTIONS: Final = f"""
local index, used, channel = unpack(KEYS)
local below = ARGV[1]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function text_of(number)
  return string.format('%.6f', number)
end

local function keys_of(id)
  return below .. id .. ':order', below .. id .. ':total', below .. id .. ':runs'
end

local function parts_of(name)
  return string.match(redis.call('HGET', index, name) or '', '^(%x+) (%d+) ([%d.]+)$')
end

local function remove(name)
  local id = parts_of(name)
  if id then
    redis.call('DEL', keys_of(id))
  end
  redis.call('HDEL', index, name)
  redis.call('ZREM', used, name)
end

local function announce()
  local number = redis.call('HINCRBY', index, '{INDEX_NUMBER}', 1)
  redis.call('PUBLISH', channel, number)
  return number
end

local function keep(id)
  redis.call('EXPIRE', index, {KEEP_SECONDS})
  redis.call('EXPIRE', used, {KEEP_SECONDS})
  for _, key in ipairs({{keys_of(id)}}) do
    redis.call('EXPIRE', key, {NAMESPACE_KEY_SECONDS})
  end
end
"""
"""What the scripts have in common. KEYS: the index, when each namespace was used, and the channel on which
orders are announced. ARGV: what the keys of a namespace begin with, before its id."""

PUBLISH_TO_NAMESPACE: Final = f"""{FUNCTIONS}
local name, candidate, expected, is_new = unpack(ARGV, 2, 5)
local scenario, text, rules, most, min_unused = unpack(ARGV, 6, 10)
local id, before, made = parts_of(name)
if (before or '0') ~= expected then
  return {{{CONFLICT}, 0}}
end
if not id then
  if redis.call('HLEN', index) - redis.call('HEXISTS', index, '{INDEX_NUMBER}') >= tonumber(most) then
    local oldest = redis.call('ZRANGE', used, 0, 0, 'WITHSCORES')
    if #oldest == 0 or now - oldest[2] < tonumber(min_unused) then
      return {{{FULL}, 0}}
    end
    remove(oldest[1])
  end
  id, made = candidate, text_of(now)
end
local order, number = keys_of(id), announce()
if is_new == '1' then
  redis.call('HSET', order, 'name', scenario, 'text', text, 'at', text_of(now))
end
redis.call('HSET', order, 'number', number, 'rules', rules)
redis.call('HSET', index, name, id .. ' ' .. number .. ' ' .. made)
redis.call('ZADD', used, text_of(now), name)
keep(id)
return {{{PUBLISHED}, number}}
"""
"""Puts an order for a namespace in force, which makes it if there is none. ARGV, after that of FUNCTIONS: its
name, an id for a new one, the number of the order that this one was made of, "1" if the scenario changes, its
name and text, the one-shot rules as JSON, how many namespaces there can be, and the seconds without use after
which one makes room for another.

It returns what became of the order, and its number."""

REMOVE_NAMESPACE: Final = f"""{FUNCTIONS}
local name, expected = unpack(ARGV, 2, 3)
local id = parts_of(name)
if not id or (expected ~= '' and expected ~= id) then
  return tonumber(redis.call('HGET', index, '{INDEX_NUMBER}') or 0)
end
remove(name)
return announce()
"""
"""Removes a namespace. ARGV, after that of FUNCTIONS: its name, and its id; empty for any. It returns the
number of the order, or of the last one if there is no such namespace."""

TOUCH_NAMESPACES: Final = f"""{FUNCTIONS}
for position = 3, #ARGV, 3 do
  local name, id, at = ARGV[position], ARGV[position + 1], now - ARGV[position + 2]
  if parts_of(name) == id then
    if at > tonumber(redis.call('ZSCORE', used, name) or 0) then
      redis.call('ZADD', used, text_of(at), name)
    end
    keep(id)
  end
end
local gone = redis.call('ZRANGEBYSCORE', used, '-inf', text_of(now - ARGV[2]))
for _, name in ipairs(gone) do
  remove(name)
end
if #gone > 0 then
  announce()
end
return gone
"""
"""Notes that namespaces are used, and removes those that are not. ARGV, after that of FUNCTIONS: the seconds
without use after which one is gone; then for each that was used its name, its id, and the seconds since then.
It returns the names of those that are gone."""

RESTORE_NAMESPACES: Final = f"""{FUNCTIONS}
local number = ARGV[2]
if tonumber(redis.call('HGET', index, '{INDEX_NUMBER}') or 0) >= tonumber(number) then
  return 0
end
local kept = {{}}
for position = 3, #ARGV, 8 do
  kept[ARGV[position + 1]] = true
end
for _, name in ipairs(redis.call('HKEYS', index)) do
  local id = parts_of(name)
  if name ~= '{INDEX_NUMBER}' and not kept[id or ''] then
    remove(name)
  end
end
for position = 3, #ARGV, 8 do
  local name, id, changed, made, scenario, text, at, rules = unpack(ARGV, position, position + 7)
  local order = keys_of(id)
  redis.call('HSET', order, 'number', changed, 'name', scenario, 'text', text, 'at', at, 'rules', rules)
  redis.call('HSET', index, name, id .. ' ' .. changed .. ' ' .. made)
  if not redis.call('ZSCORE', used, name) then
    redis.call('ZADD', used, text_of(now), name)
  end
  keep(id)
end
redis.call('HSET', index, '{INDEX_NUMBER}', number)
redis.call('PUBLISH', channel, number)
return 1
"""
"""Writes all namespaces again where Redis has lost them, or some orders to them. ARGV, after that of
FUNCTIONS: the number of the last order, and for each namespace eight words: its name, its id, the number of
the order that changed it last, when it was made, and the name, the text, the time and the one-shot rules of
that order."""

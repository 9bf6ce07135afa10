"""The Lua script that Redis runs for a batch of requests, and how a request is written for it.

Redis runs a script without interruption, so what a batch changes no other machine changes at the same time.
The clock is that of Redis. Every key expires.
"""

from __future__ import annotations

from typing import Any, Final

from blackhole.rules.attempt_store import Update
from blackhole.store.redis_conduct import CONDUCT_FUNCTIONS
from blackhole.store.redis_quotas import QUOTA_FUNCTIONS

RENEW_INTERVAL: Final = 20.0
"""Seconds between two renewals of the leases of held slots."""

LEASE_SECONDS: Final = 3 * RENEW_INTERVAL
"""Seconds after which a slot that is not renewed is free again."""

ATTEMPT_KEY: Final = "attempt"
SLOTS_KEY: Final = "slots"
CLIENT_KEY: Final = "client"
"""What follows the prefix in a key: of a record of attempts, of the held slots of a concurrency limit, and of
what a client has done in this minute."""

READ_CLOCK: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

SCRIPT: Final = f"""
local function is_of_wrong_type(reply)
  if type(reply) ~= 'table' then
    return false
  end
  return string.find(reply.err, 'WRONGTYPE', 1, true) and true or error(reply.err)
end

local secret = redis.pcall('GET', KEYS[1])
if is_of_wrong_type(secret) or secret and (#secret == 0 or #secret > 64) then
  return redis.error_reply('ERR ' .. KEYS[1] .. ' holds no secret of 1 to 64 octets; delete it')
elseif secret and secret ~= ARGV[1] then
  return secret
elseif not secret or #KEYS == 1 then
  redis.call('SET', KEYS[1], ARGV[1])
end
{READ_CLOCK}
local SECOND = 1000000
local DAY = 86400 * SECOND
local LARGEST = 2 ^ 53
local LEASE = {LEASE_SECONDS:.0f} * SECOND

local function decimal(number)
  return string.format('%.0f', number)
end

-- A key may hold anything: what is no record, or is from the future, counts as none.
local function read_record(key)
  local text = redis.pcall('GET', key)
  if is_of_wrong_type(text) or not text or #text > 64 then
    return 0, now, now
  end
  local count, first, last = string.match(text, '^(%d+) (%d+) (%d+)$')
  count, first, last = tonumber(count), tonumber(first), tonumber(last)
  if not count or count > LARGEST or first > last or last > now + DAY then
    return 0, now, now
  end
  return count, first, last
end

local function write_record(key, count, first, length)
  local text = decimal(count) .. ' ' .. decimal(first) .. ' ' .. decimal(now)
  redis.call('SET', key, text, 'PX', decimal(math.max(1, math.ceil(length / 1000))))
end

-- No lease is longer than LEASE: one that is was not made here, or before the clock was set back.
local function drop_leases(key)
  if is_of_wrong_type(redis.pcall('ZREMRANGEBYSCORE', key, '-inf', decimal(now))) then
    redis.call('DEL', key)
  end
  redis.call('ZREMRANGEBYSCORE', key, decimal(now + 2 * LEASE), '+inf')
end

local function hold_slot(key, token)
  redis.call('ZADD', key, decimal(now + LEASE), token)
  redis.call('PEXPIRE', key, decimal(LEASE / 1000))
end

-- Updates of records, by the names of the Python functions that do the same.
local change = {{}}

function change.count_attempt(key)
  local count, first = read_record(key)
  write_record(key, count + 1, first, 7 * DAY)
  return count + 1
end

function change.blocks_attempt(key, least, most)
  local count, first, last = read_record(key)
  if count > 0 and last - first >= least * SECOND then
    write_record(key, count + 1, first, 35 * DAY)
    return 0
  end
  local since = now - first
  if count == 0 or since > most * SECOND then
    count, first, since = 0, now, -1
  end
  if since < least * SECOND then
    write_record(key, count + 1, first, most * SECOND)
    return 1
  end
  write_record(key, count + 1, first, 35 * DAY)
  return 0
end

{QUOTA_FUNCTIONS}
{CONDUCT_FUNCTIONS}
function change.take(key, limit)
  local count, first = read_record(key)
  if count >= tonumber(limit) then
    return 0
  end
  write_record(key, count + 1, first, 7 * DAY)
  return 1
end

-- What a client has done in this minute: the number of the minute, and a count of each kind.

function change.use(key, ...)
  local amounts, counts, period = {{...}}, {{}}, 60 * SECOND
  local minute = math.floor(now / period)
  local text = redis.pcall('GET', key)
  if not is_of_wrong_type(text) and text and #text <= 256 then
    local of, known = string.match(text, '^(%d+) ([%d ]+)$')
    if tonumber(of) == minute then
      for count in string.gmatch(known, '%d+') do
        counts[#counts + 1] = tonumber(count)
      end
    end
  end
  for place, amount in ipairs(amounts) do
    amounts[place] = decimal(math.min((counts[place] or 0) + amount, LARGEST))
  end
  local left = decimal(math.max(1, math.ceil(((minute + 1) * period - now) / 1000)))
  local sums = table.concat(amounts, ' ')
  redis.call('SET', key, decimal(minute) .. ' ' .. sums, 'PX', left)
  return sums .. ' ' .. left
end

-- Concurrency slots: a sorted set of tokens by the time when their leases end.

function change.acquire(key, limit, token)
  drop_leases(key)
  if redis.call('ZCARD', key) >= tonumber(limit) then
    return 1
  end
  hold_slot(key, token)
  return 0
end

function change.renew(key, token)
  drop_leases(key)
  hold_slot(key, token)
  return 0
end

function change.release(key, token)
  drop_leases(key)
  redis.call('ZREM', key, token)
  return 0
end

local answers = {{}}
for number = 2, #KEYS do
  local words = {{}}
  for word in string.gmatch(ARGV[number], '%S+') do
    words[#words + 1] = word
  end
  answers[number - 1] = change[words[1]](KEYS[number], unpack(words, 2))
end
return answers
"""
"""The script that runs a batch.

KEYS: the key of the secret, and a key for each request. ARGV: the secret, and the words of each request.
It returns the answers (a number, which is 1 for yes and 0 for no, or several), or the right secret if the
batch was made with another one.
A batch without requests writes the secret again, so that its answer tells whether Redis takes writes.
"""


def request_words(change: Update[Any]) -> str:
    """Return an update as words for the script: the name of its function, and the tuple it is bound to."""
    bound: tuple[object, ...] = getattr(change, "__self__", ())
    return " ".join((change.__name__, *map(repr, bound)))

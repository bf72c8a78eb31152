-- What each key was lent of its limit in the last hour: pairs of a loan's end and
-- its units, 64 bits each, little-endian. `ends` is the last one's.
create table limit_windows (
  key blob not null primary key,
  ends integer not null,
  loans blob not null
) without rowid;

-- What was called, absolute for a session. `span`: 0, a minute of a tier; 1, an
-- hour of a tenant's tier; 2, an hour of a key. `bucket` is its number since the
-- Unix epoch, `at` when the row was written.
create table call_counts (
  span integer not null,
  bucket integer not null,
  subject blob not null,
  tier text not null,
  sid integer not null,
  admitted integer not null,
  limited integer not null,
  refused integer not null,
  at integer not null,
  primary key (span, bucket, subject, tier, sid)
) without rowid;
create index call_counts_at on call_counts (at);

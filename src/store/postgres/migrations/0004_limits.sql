-- What each key was lent of its limit in the last hour: pairs of a loan's end and
-- its units, 64 bits each, little-endian. `ends` is the last one's. No index on
-- it: each change of a row would be an index write.
create table limit_windows (
  key uuid primary key,
  ends bigint not null,
  loans bytea not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- What was called, absolute for a session. `span`: 0, a minute of a tier; 1, an
-- hour of a tenant's tier; 2, an hour of a key. `bucket` is its number since the
-- Unix epoch, `at` when the row was written.
create table call_counts (
  span smallint not null,
  bucket bigint not null,
  subject uuid not null,
  tier text not null,
  sid bigint not null,
  admitted bigint not null,
  limited bigint not null,
  refused bigint not null,
  at bigint not null,
  primary key (span, bucket, subject, tier, sid)
);
create index call_counts_at on call_counts (at);

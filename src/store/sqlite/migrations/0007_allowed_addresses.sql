-- Networks in CIDR notation with commas between them; null for any address.
-- Nullable and without a default: no row is written.
alter table keys add column allowed_cidrs text;

-- Nullable and without a default: no row is written.
alter table subscriptions add column client_certificate blob;

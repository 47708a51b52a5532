-- What the others need: run this after license-expiry init-db, at an upgrade too. psql license_manager --file rights.sql
GRANT USAGE ON SCHEMA public TO license_expiry, license_expiry_flower, license_expiry_serve;
GRANT SELECT ON subscriptions_customeragreement, subscriptions_subscriptionplan,
  subscriptions_subscriptionplanrenewal, subscriptions_license, subscriptions_licenseevent,
  subscriptions_historicalsubscriptionplan, subscriptions_historicallicense, license_expiry_run,
  license_expiry_downgrade, license_expiry_held, license_expiry_night, license_expiry_lms, license_expiry_throttle,
  license_expiry_heartbeat, license_expiry_retry, license_expiry_wait, license_expiry_ledger, license_expiry_lms_call,
  license_expiry_pruned, license_expiry_alembic_version TO license_expiry, license_expiry_flower, license_expiry_serve;
-- The worker and the command.
GRANT UPDATE (expiration_processed, modified) ON subscriptions_subscriptionplan TO license_expiry;
GRANT INSERT ON subscriptions_licenseevent, subscriptions_historicalsubscriptionplan TO license_expiry;
GRANT INSERT, UPDATE, DELETE ON license_expiry_run TO license_expiry;
GRANT INSERT, DELETE ON license_expiry_downgrade TO license_expiry;
GRANT INSERT, UPDATE, DELETE ON license_expiry_held TO license_expiry;
GRANT INSERT, UPDATE, DELETE ON license_expiry_night TO license_expiry;
GRANT INSERT, UPDATE ON license_expiry_lms TO license_expiry;
GRANT UPDATE ON license_expiry_throttle TO license_expiry;
GRANT INSERT, UPDATE ON license_expiry_heartbeat TO license_expiry;
GRANT INSERT, UPDATE, DELETE ON license_expiry_retry TO license_expiry;
GRANT INSERT, UPDATE, DELETE ON license_expiry_wait TO license_expiry;
GRANT INSERT, DELETE ON license_expiry_lms_call TO license_expiry;
GRANT INSERT, UPDATE ON license_expiry_pruned TO license_expiry;
-- Flower: to stop runs, to pause and to resume.
GRANT UPDATE ON license_expiry_run TO license_expiry_flower;
GRANT DELETE ON license_expiry_downgrade TO license_expiry_flower;
GRANT INSERT, DELETE ON license_expiry_wait TO license_expiry_flower;

-- What the others need: run this after license-expiry init-db, at an upgrade too. mysql license_manager < rights.sql
GRANT SELECT ON subscriptions_customeragreement TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_subscriptionplan TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_subscriptionplanrenewal TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_license TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_licenseevent TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_historicalsubscriptionplan TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON subscriptions_historicallicense TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_run TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_downgrade TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_held TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_night TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_lms TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_throttle TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_heartbeat TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_retry TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_wait TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_ledger TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_lms_call TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
GRANT SELECT ON license_expiry_alembic_version TO 'license_expiry'@'%', 'license_expiry_flower'@'%', 'license_expiry_serve'@'%';
-- The worker and the command.
GRANT UPDATE (expiration_processed, modified) ON subscriptions_subscriptionplan TO 'license_expiry'@'%';
GRANT INSERT ON subscriptions_licenseevent TO 'license_expiry'@'%';
GRANT INSERT ON subscriptions_historicalsubscriptionplan TO 'license_expiry'@'%';
GRANT INSERT, UPDATE ON license_expiry_run TO 'license_expiry'@'%';
GRANT INSERT, DELETE ON license_expiry_downgrade TO 'license_expiry'@'%';
GRANT INSERT, UPDATE, DELETE ON license_expiry_held TO 'license_expiry'@'%';
GRANT INSERT, UPDATE, DELETE ON license_expiry_night TO 'license_expiry'@'%';
GRANT INSERT, UPDATE ON license_expiry_lms TO 'license_expiry'@'%';
GRANT UPDATE ON license_expiry_throttle TO 'license_expiry'@'%';
GRANT INSERT, UPDATE ON license_expiry_heartbeat TO 'license_expiry'@'%';
GRANT INSERT, UPDATE, DELETE ON license_expiry_retry TO 'license_expiry'@'%';
GRANT INSERT, UPDATE, DELETE ON license_expiry_wait TO 'license_expiry'@'%';
GRANT INSERT, DELETE ON license_expiry_lms_call TO 'license_expiry'@'%';
-- Flower: to stop runs, to pause and to resume.
GRANT UPDATE ON license_expiry_run TO 'license_expiry_flower'@'%';
GRANT DELETE ON license_expiry_downgrade TO 'license_expiry_flower'@'%';
GRANT INSERT, DELETE ON license_expiry_wait TO 'license_expiry_flower'@'%';

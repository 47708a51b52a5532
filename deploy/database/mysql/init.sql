-- What license-expiry init-db needs: run this before it, at an upgrade too. mysql license_manager < init.sql
-- REFERENCES lets it see the columns of a table, and none of its rows.
GRANT REFERENCES ON subscriptions_customeragreement TO 'license_expiry_init'@'%';
GRANT REFERENCES ON subscriptions_subscriptionplan TO 'license_expiry_init'@'%';
GRANT REFERENCES ON subscriptions_subscriptionplanrenewal TO 'license_expiry_init'@'%';
GRANT REFERENCES ON subscriptions_license TO 'license_expiry_init'@'%';
GRANT REFERENCES ON subscriptions_licenseevent TO 'license_expiry_init'@'%';
GRANT REFERENCES ON subscriptions_historicalsubscriptionplan TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_run TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_downgrade TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_held TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_night TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_lms TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_throttle TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_heartbeat TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_retry TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_wait TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_ledger TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_lms_call TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_pruned TO 'license_expiry_init'@'%';
GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE ON license_expiry_alembic_version TO 'license_expiry_init'@'%';

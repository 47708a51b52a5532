-- What license-expiry init-db needs: run this before it. psql license_manager --file init.sql
-- The ledger's tables are this account's own; it may read none of license-manager's.
GRANT USAGE, CREATE ON SCHEMA public TO license_expiry_init;

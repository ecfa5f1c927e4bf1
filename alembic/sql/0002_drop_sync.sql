DROP TABLE market_data.jobs;
DROP TABLE market_data.worker;
DROP TABLE market_data.entitlements;
DROP TABLE market_data.missed_bars;
DROP INDEX market_data.sync_state_requested_idx;
ALTER TABLE market_data.sync_state DROP CONSTRAINT sync_state_status_check;
UPDATE market_data.sync_state SET status = 'failed' WHERE status = 'refused';
ALTER TABLE market_data.sync_state
    ADD CONSTRAINT sync_state_status_check CHECK (status IN ('new', 'ok', 'failed')),
    DROP COLUMN last_sync_changed,
    DROP COLUMN failures,
    DROP COLUMN rechecked_at,
    DROP COLUMN requested,
    DROP COLUMN asked_at,
    DROP COLUMN asked_to,
    DROP COLUMN tracked_since,
    DROP COLUMN tracked_from;

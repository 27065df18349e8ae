//! check

/// Name of the status file in a `backup_dir`.
pub const STATUS_FILE: &str = "s3_backup_status.txt";

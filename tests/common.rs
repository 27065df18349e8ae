//! common

pub(crate) mod rgw;
pub(crate) mod s3_fault;

//! blobdir

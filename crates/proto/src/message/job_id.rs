//! A job id that must be there; `Option` only so that the messages have a default.

use serde::{Deserialize, Deserializer, Serializer};

use crate::id::JobId;

pub(crate) fn serialize<S: Serializer>(job: &Option<JobId>, to: S) -> Result<S::Ok, S::Error> {
    match job {
        Some(job) => to.collect_str(job),
        None => Err(serde::ser::Error::custom("a message without its job id")),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<JobId>, D::Error> {
    JobId::deserialize(from).map(Some)
}

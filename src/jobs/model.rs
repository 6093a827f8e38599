//! What a job is: its request, its record in the catalog, and the states it may move between.
//!
//! ```text
//!            ┌──────── transient failure, restart ────────┐
//!            ▼                                            │
//!  submit → queued ──────────────────────────────────► running ──► done
//!            ▲  │                                       │  │  └──► failed ───┐
//!     resume │  └──────────── cancel ──► cancelled ◄────┘  │                 │
//!            └────────────── paused ◄── pause, disk full ──┘      retry ─────┴─► queued
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use reelring_storage::{BlobId, Key};
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::progress::{Notes, Progress};
use crate::transcode::{AssetId, Ladder};

/// A job's name: a version 7 UUID in 32 lower-case hexadecimal digits, so ids sort by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    #[allow(clippy::new_without_default, reason = "every call gives another id")]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no job id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a job id: it must be 32 lower-case hexadecimal digits, as `reelring jobs` lists them")]
pub struct JobIdError(String);

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let valid = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid { Ok(Self(text.into())) } else { Err(JobIdError(text.chars().take(64).collect())) }
    }
}

impl TryFrom<String> for JobId {
    type Error = JobIdError;

    fn try_from(text: String) -> Result<Self, JobIdError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}

/// What a client asks for, as `POST /v1/jobs` takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobSpec {
    Fetch(FetchSpec),
    Transcode(TranscodeSpec),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchSpec {
    pub url: String,
    /// Where the object goes; by default a name from the answer, made unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Transcode the object to this ladder once it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcode: Option<Ladder>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscodeSpec {
    pub source: Key,
    #[serde(default)]
    pub ladder: Ladder,
}

/// A request that names something impossible.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

impl JobSpec {
    pub fn kind(&self) -> &'static str {
        match self {
            JobSpec::Fetch(_) => "fetch",
            JobSpec::Transcode(_) => "transcode",
        }
    }

    /// Everything about the request that is wrong whatever the node's state.
    pub fn validate(&self) -> Result<(), SpecError> {
        let JobSpec::Fetch(fetch) = self else { return Ok(()) };
        if fetch.url.len() > limits::FETCH_URL_BYTES {
            return Err(SpecError(format!(
                "url {:?}… has {} bytes, the limit is {}",
                clip(&fetch.url),
                fetch.url.len(),
                limits::FETCH_URL_BYTES
            )));
        }
        let url = url::Url::parse(&fetch.url)
            .map_err(|error| SpecError(format!("url {:?} is not valid: {error}", clip(&fetch.url))))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SpecError(format!(
                "url {:?} has the scheme {:?}; only http and https can be fetched",
                clip(&fetch.url),
                url.scheme()
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(SpecError(
                "the url carries a user name or password, which would show in lists; send an Authorization header in \
                 `headers` instead"
                    .into(),
            ));
        }
        if let Some(sha256) = &fetch.sha256
            && parse_sha256(sha256).is_none()
        {
            return Err(SpecError(format!("sha256 {:?} is not valid: it must be 64 hexadecimal digits", clip(sha256))));
        }
        let bytes: usize = fetch.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if fetch.headers.len() > limits::JOB_HEADERS || bytes > limits::JOB_HEADER_BYTES {
            return Err(SpecError(format!(
                "{} headers of {bytes} bytes are too many: at most {} of {} bytes in all",
                fetch.headers.len(),
                limits::JOB_HEADERS,
                limits::JOB_HEADER_BYTES
            )));
        }
        for (name, value) in &fetch.headers {
            if http_name(name).is_none() || axum::http::HeaderValue::from_str(value).is_err() {
                return Err(SpecError(format!("header {:?} is not valid HTTP", clip(name))));
            }
        }
        Ok(())
    }
}

fn http_name(name: &str) -> Option<axum::http::HeaderName> {
    name.parse().ok()
}

/// The first characters of a foreign text, so that a message stays short.
fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

pub(super) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Paused,
    Done,
    Failed,
    Cancelled,
}

impl JobState {
    pub const ALL: [JobState; 6] =
        [JobState::Queued, JobState::Running, JobState::Paused, JobState::Done, JobState::Failed, JobState::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Nothing will change any more unless somebody asks.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        JobState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            SpecError(format!(
                "{:?} is not a job state; the states are queued, running, paused, done, failed, cancelled",
                clip(text)
            ))
        })
    }
}

/// What a finished job made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The object's key.
    pub object: Option<Key>,
    pub asset: Option<AssetId>,
    /// Path of the HLS main playlist on this node.
    pub hls: Option<String>,
    /// Path of the DASH manifest on this node.
    pub dash: Option<String>,
}

impl JobResult {
    pub(super) fn of_asset(object: Option<Key>, asset: &AssetId) -> Self {
        let hls = Some(format!("/v1/assets/{asset}/hls/main.m3u8"));
        Self { object, asset: Some(asset.clone()), hls, dash: None }
    }
}

/// The step a job is at. Each runs in a lane of its own, so that a long transcode never holds up a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Fetch,
    Transcode,
}

/// A job as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub kind: String,
    pub state: JobState,
    pub stage: Stage,
    pub attempts: u32,
    pub progress: Progress,
    pub encoder: Option<String>,
    pub fallback_reason: Option<String>,
    pub error: Option<String>,
    pub result: Option<JobResult>,
    /// The request; values of headers are left out, they may be secrets.
    pub request: JobSpec,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// A job as the catalog keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: JobId,
    pub spec: JobSpec,
    pub state: JobState,
    pub stage: Stage,
    /// Runs begun, of any stage.
    pub attempts: u32,
    /// Runs of this stage that ended in a transient failure.
    pub failures: u32,
    /// Earliest start of the next run.
    pub not_before: Option<Timestamp>,
    /// The partial blob a fetch writes: fixed at admission, so that a restart finds its journal.
    pub blob: BlobId,
    /// Whether that partial is worth keeping although no run is due.
    pub keep_partial: bool,
    /// The asset a transcode fills, fixed at admission.
    pub asset: AssetId,
    /// The key of the stored object once the fetch stage is over.
    pub object: Option<Key>,
    pub progress: Progress,
    pub notes: Notes,
    pub error: Option<String>,
    pub result: Option<JobResult>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Record {
    pub fn new(spec: JobSpec) -> Self {
        let stage = match &spec {
            JobSpec::Fetch(_) => Stage::Fetch,
            JobSpec::Transcode(_) => Stage::Transcode,
        };
        Self {
            id: JobId::new(),
            object: match &spec {
                JobSpec::Fetch(_) => None,
                JobSpec::Transcode(transcode) => Some(transcode.source.clone()),
            },
            spec,
            state: JobState::Queued,
            stage,
            attempts: 0,
            failures: 0,
            not_before: None,
            blob: BlobId::new(),
            keep_partial: false,
            asset: AssetId::new(),
            progress: Progress::default(),
            notes: Notes::default(),
            error: None,
            result: None,
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
        }
    }

    /// Whether the partial blob may still be continued.
    pub fn claims_partial(&self) -> bool {
        self.stage == Stage::Fetch && (!self.state.is_final() || self.keep_partial)
    }

    /// The step from the queue into a run.
    pub fn start(&mut self, now: Timestamp) {
        self.state = JobState::Running;
        self.attempts += 1;
        self.started_at.get_or_insert(now);
        self.not_before = None;
        if self.stage == Stage::Transcode {
            // Told from the start: the asset plays while it is being made.
            self.result = Some(JobResult::of_asset(self.object.clone(), &self.asset));
        }
    }

    /// An asset that will not be finished is removed; its source stays.
    pub fn forget_asset(&mut self) {
        self.result = match (&self.spec, self.stage) {
            (JobSpec::Fetch(_), Stage::Transcode) => {
                Some(JobResult { object: self.object.clone(), ..JobResult::default() })
            }
            _ => None,
        };
    }

    pub fn view(&self) -> Job {
        let mut request = self.spec.clone();
        if let JobSpec::Fetch(fetch) = &mut request {
            for value in fetch.headers.values_mut() {
                *value = "…".into();
            }
        }
        Job {
            id: self.id.clone(),
            kind: self.spec.kind().into(),
            state: self.state,
            stage: self.stage,
            attempts: self.attempts,
            progress: self.progress.clone(),
            encoder: self.notes.encoder.clone(),
            fallback_reason: self.notes.fallback_reason.clone(),
            error: self.error.clone(),
            result: self.result.clone(),
            request,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<JobSpec, String> {
        let spec: JobSpec = serde_json::from_str(json).map_err(|error| error.to_string())?;
        spec.validate().map_err(|error| error.to_string()).map(|()| spec)
    }

    #[test]
    fn requests_are_checked_and_the_message_names_what_is_wrong() {
        for (json, expected) in [
            (r#"{"kind":"fly"}"#, "fly"),
            (r#"{"kind":"fetch"}"#, "url"),
            (r#"{"kind":"fetch","url":"ftp://a/b"}"#, "only http and https"),
            (r#"{"kind":"fetch","url":"not a url"}"#, "not a url"),
            (r#"{"kind":"fetch","url":"http://user:secret@a/"}"#, "Authorization"),
            (r#"{"kind":"fetch","url":"http://a/","sha256":"abc"}"#, "64 hexadecimal"),
            (r#"{"kind":"fetch","url":"http://a/","sha256":"éééééééééééééééééééééééééééééééé"}"#, "64 hexadecimal"),
            (r#"{"kind":"fetch","url":"http://a/","headers":{"X-A":"b\r\nEvil: 1"}}"#, "X-A"),
            (r#"{"kind":"fetch","url":"http://a/","key":"../x"}"#, ".."),
            (r#"{"kind":"fetch","url":"http://a/","colour":"red"}"#, "colour"),
        ] {
            let message = spec(json).expect_err(json);
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn a_view_hides_the_values_of_headers() {
        let spec = spec(r#"{"kind":"fetch","url":"http://a/","headers":{"Authorization":"secret"}}"#).unwrap();
        let record = Record::new(spec);
        assert!(!serde_json::to_string(&record.view()).unwrap().contains("secret"));
        assert!(serde_json::to_string(&record).unwrap().contains("secret"), "the record must keep it for the fetch");
    }

    #[test]
    fn job_ids_are_strict() {
        assert!(JobId::new().as_str().parse::<JobId>().is_ok());
        for text in ["", "../../etc", "0123456789ABCDEF0123456789ABCDEF", "é"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }
}

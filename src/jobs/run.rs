//! One run of one stage of a job: what each kind of job does, in terms of the rooms below.
//!
//! A run owns nothing durable. It returns what the scheduler writes into the record; when it is dropped or cancelled,
//! a fetch leaves its journal and a transcode its committed segments.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use reelring_storage::{Error as StorageError, Key, ObjectRecord, Precondition, SealedBlob, Store};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::model::{FetchSpec, JobResult, JobSpec, Record, parse_sha256};
use crate::error::Failure;
use crate::ingest::{self, FetchRequest, guard};
use crate::plugins::{Extraction, Plugins};
use crate::progress::Reporter;
use crate::transcode::{Ladder, TranscodeRequest, Transcoder};

/// What runs need: the rooms below `jobs`.
#[derive(Clone)]
pub struct Workshop {
    pub store: Store,
    pub client: guard::Client,
    pub plugins: Plugins,
    pub transcoder: Transcoder,
}

/// How a run that did not fail ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(JobResult),
    /// The object is stored; the transcode stage follows.
    Stored(Key),
}

impl Workshop {
    pub(super) async fn fetch(
        &self,
        record: &Record,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let JobSpec::Fetch(spec) = &record.spec else {
            return Err(Failure::permanent("the job's record is inconsistent: only a fetch has a fetch stage"));
        };
        let extraction = self.extract(record, spec, cancel).await?;
        let request = request(record, spec, extraction.as_ref())?;
        let fetched = ingest::fetch(&self.store, &self.client, request, reporter, cancel).await?;
        let key = match &spec.key {
            Some(key) => {
                self.store.put_object(key, fetched.sealed, Precondition::None).await?;
                key.clone()
            }
            None => {
                let titled = extraction.and_then(|extraction| {
                    ingest::of_title(extraction.title.as_deref()?, extraction.ext.as_deref(), &fetched.file_name)
                });
                self.put_under_free_name(&titled.unwrap_or(fetched.file_name), fetched.sealed).await?
            }
        };
        Ok(match &spec.transcode {
            Some(_) => Outcome::Stored(key),
            None => Outcome::Done(JobResult { object: Some(key), ..JobResult::default() }),
        })
    }

    /// What the plugin that claims the job's address finds behind it.
    async fn extract(
        &self,
        record: &Record,
        spec: &FetchSpec,
        cancel: &CancellationToken,
    ) -> Result<Option<Extraction>, Failure> {
        let url = parse(&spec.url)?;
        if self.plugins.claims(&url).is_none() {
            return Ok(None);
        }
        let extraction = self.plugins.extract(&url, cancel).await?;
        tracing::debug!(job = %record.id, plugin = %extraction.plugin, url = %extraction.url, "extracted");
        Ok(Some(extraction))
    }

    /// Stores the blob under the origin's name for it, numbered when that is taken: a name nobody chose never
    /// replaces an object.
    async fn put_under_free_name(&self, name: &str, sealed: SealedBlob) -> Result<Key, Failure> {
        for number in 1..=MAX_NUMBER {
            let key = numbered(name, number)?;
            if self.store.object(&key).await?.is_none() {
                return match self.store.put_object(&key, sealed, Precondition::IfNoneMatchAny).await {
                    Ok(_) => Ok(key),
                    Err(StorageError::PreconditionFailed { .. }) => Err(Failure::transient(format!(
                        "an object named {key} was stored by somebody else at the same moment; the job tries again"
                    ))),
                    Err(error) => Err(error.into()),
                };
            }
        }
        Err(Failure::permanent(format!(
            "{MAX_NUMBER} objects named like {name} exist already; name this one with --key (\"key\" in the request)"
        )))
    }

    pub(super) async fn transcode(
        &self,
        record: &Record,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let Some(key) = &record.object else {
            return Err(Failure::permanent("the job's record is inconsistent: there is no object to transcode"));
        };
        let source = self.source(key).await?;
        let ladder = match &record.spec {
            JobSpec::Fetch(spec) => spec.transcode.clone().unwrap_or_default(),
            JobSpec::Transcode(spec) => spec.ladder.clone(),
        };
        self.encode(record, source, ladder, reporter, cancel).await
    }

    async fn source(&self, key: &Key) -> Result<ObjectRecord, Failure> {
        self.store.object(key).await?.ok_or_else(|| {
            Failure::permanent(format!("there is no object {key} to transcode; `reelring ls` lists those there are"))
        })
    }

    async fn encode(
        &self,
        record: &Record,
        source: ObjectRecord,
        ladder: Ladder,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let object = source.key.clone();
        let request = TranscodeRequest { source, ladder, asset: record.asset.clone() };
        let outcome = self.transcoder.run(request, reporter, cancel).await?;
        Ok(Outcome::Done(JobResult::of_asset(Some(object), &outcome.asset)))
    }
}

/// The request to the origin: the job's own, with the address and headers a plugin found. The job's headers win.
fn request(record: &Record, spec: &FetchSpec, extraction: Option<&Extraction>) -> Result<FetchRequest, Failure> {
    let (url, mut headers) = match extraction {
        Some(extraction) => (extraction.url.clone(), extraction.headers.clone()),
        None => (parse(&spec.url)?, HeaderMap::new()),
    };
    for (name, value) in &spec.headers {
        let name = name.parse::<HeaderName>().map_err(|error| Failure::permanent(error.to_string()))?;
        let value = HeaderValue::from_str(value).map_err(|error| Failure::permanent(error.to_string()))?;
        headers.insert(name, value);
    }
    let sha256 = spec.sha256.as_deref().and_then(parse_sha256);
    Ok(FetchRequest { blob: record.blob, url, headers, sha256, key: spec.key.clone() })
}

fn parse(url: &str) -> Result<Url, Failure> {
    Url::parse(url).map_err(|error| Failure::permanent(format!("{url}: {error}")))
}

const MAX_NUMBER: usize = 1000;

/// `film.mp4`, `film-2.mp4`, `film-3.mp4`, …
fn numbered(name: &str, number: usize) -> Result<Key, Failure> {
    let text = match (number, name.rsplit_once('.')) {
        (1, _) => name.to_string(),
        (_, Some((stem, extension))) if !stem.is_empty() => format!("{stem}-{number}.{extension}"),
        _ => format!("{name}-{number}"),
    };
    Key::parse(&text).map_err(|error| Failure::permanent(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbered_before_the_extension() {
        for (name, number, expected) in
            [("film.mp4", 1, "film.mp4"), ("film.mp4", 2, "film-2.mp4"), ("film", 3, "film-3"), (".env", 2, ".env-2")]
        {
            assert_eq!(numbered(name, number).unwrap().as_str(), expected);
        }
    }
}

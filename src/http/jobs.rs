//! `/v1/jobs`: ask for long work and see how it goes.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::jobs::{Job, JobError, JobId, JobSpec, JobState};
use crate::limits;
use crate::node::Node;

pub(super) async fn submit(State(node): State<Arc<Node>>, request: Request) -> Result<Response, Problem> {
    let idempotency_key = idempotency_key(request.headers())?;
    let request = axum::http::Request::map(request, |body| {
        axum::body::Body::new(http_body_util::Limited::new(body, limits::HTTP_JSON_BODY))
    });
    let spec: Result<Json<JobSpec>, JsonRejection> = Json::from_request(request, &()).await;
    let Json(spec) = spec?;
    let job = node.jobs().submit(spec, idempotency_key).await?;
    let location = format!("/v1/jobs/{}", job.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(job)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= limits::IDEMPOTENCY_KEY_BYTES => Ok(Some(key.to_string())),
        _ => Err(Problem::bad_request(
            "idempotency-key",
            format!(
                "Idempotency-Key must be 1 to {} printable ASCII characters; this one has {} bytes",
                limits::IDEMPOTENCY_KEY_BYTES,
                value.len()
            ),
        )),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct List {
    jobs: Vec<Job>,
    /// Give it as `after` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<JobId>,
}

pub(super) async fn list(
    State(node): State<Arc<Node>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(query) = query?;
    let limit = super::page_limit(query.limit)?;
    let state: Option<JobState> = query.state.as_deref().map(str::parse).transpose().map_err(JobError::from)?;
    let after = query.after.as_deref().map(parse_id).transpose()?;
    let mut jobs = node.jobs().list(state, after, limit).await?;
    // A full page may be the last one: the next is then empty, which costs a client one request.
    let next = if jobs.len() == limit { jobs.last().map(|job| job.id.clone()) } else { None };
    jobs.truncate(limit);
    Ok(Json(List { jobs, next }))
}

pub(super) async fn one(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<Json<Job>, Problem> {
    let id = parse_id(&id)?;
    node.jobs().get(&id).await?.map(Json).ok_or_else(|| JobError::Unknown(id).into())
}

pub(super) async fn cancel(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<Json<Job>, Problem> {
    Ok(Json(node.jobs().cancel(&parse_id(&id)?).await?))
}

pub(super) async fn act(
    State(node): State<Arc<Node>>,
    Path((id, action)): Path<(String, String)>,
) -> Result<Json<Job>, Problem> {
    let id = parse_id(&id)?;
    let jobs = node.jobs();
    let job = match action.as_str() {
        "pause" => jobs.pause(&id).await?,
        "resume" => jobs.resume(&id).await?,
        "retry" => jobs.retry(&id).await?,
        _ => {
            let detail = format!("a job cannot {:?}; it can pause, resume or retry", clip(&action));
            return Err(Problem::not_found(detail));
        }
    };
    Ok(Json(job))
}

pub(super) fn parse_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|error: crate::jobs::JobIdError| Problem::bad_request("invalid-id", error.to_string()))
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

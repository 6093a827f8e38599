//! `/v1/tokens`: make, list and revoke tokens. `/v1/signatures`: sign an address.
//!
//! The file is written on a thread of its own; when the client goes away meanwhile, the change is made all the same.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use percent_encoding::utf8_percent_encode;
use reelring_storage::Key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::access::{Grant, SIGNATURE};
use super::problem::Problem;
use crate::access::{AccessError, Cover, Methods, Scopes, Signature, Token, TokenId, TokenName};
use crate::address;
use crate::limits;
use crate::node::Node;
use crate::transcode::AssetId;

/// What a signed address is good for when nobody says.
const EXPIRES_S: u64 = 3600;

/// A token for people: nothing that could be used.
#[derive(Serialize)]
pub(super) struct Listed {
    id: TokenId,
    name: TokenName,
    scopes: Scopes,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

impl From<Token> for Listed {
    fn from(token: Token) -> Self {
        let Token { id, name, scopes, created_at, expires_at, .. } = token;
        Self { id, name, scopes, created_at, expires_at }
    }
}

#[derive(Serialize)]
pub(super) struct List {
    tokens: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    name: TokenName,
    scopes: Scopes,
    expires_s: Option<u64>,
}

#[derive(Serialize)]
struct Made {
    #[serde(flatten)]
    listed: Listed,
    /// Shown this once.
    token: String,
    signing_key: String,
}

pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<List> {
    Json(List { tokens: node.access().tokens().into_iter().map(Listed::from).collect() })
}

pub(super) async fn create(
    State(node): State<Arc<Node>>,
    grant: Option<Extension<Grant>>,
    request: Request,
) -> Result<Response, Problem> {
    owner_or_admin(grant)?;
    let New { name, scopes, expires_s } = json(request).await?;
    let expires_at = expires_s.map(|seconds| from_now(seconds, "expires_s")).transpose()?;
    let created = blocking(node, move |node| node.access().create(name, scopes, expires_at)).await?;
    let signing_key = created.token.signing_key.to_hex();
    let made = Made { listed: created.token.into(), token: created.bearer, signing_key };
    Ok((StatusCode::CREATED, [(axum::http::header::CACHE_CONTROL, "no-store")], Json(made)).into_response())
}

pub(super) async fn revoke(
    State(node): State<Arc<Node>>,
    grant: Option<Extension<Grant>>,
    Path(which): Path<String>,
) -> Result<StatusCode, Problem> {
    owner_or_admin(grant)?;
    let shown: String = which.chars().take(limits::TOKEN_NAME_BYTES).collect();
    match blocking(node, move |node| node.access().revoke(&which)).await? {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Problem::not_found(format!(
            "there is no token {shown:?}; GET /v1/tokens or `reelring token ls` lists those there are"
        ))),
    }
}

/// Who merely reaches an open node must not be the one who closes it.
fn owner_or_admin(grant: Option<Extension<Grant>>) -> Result<(), Problem> {
    if !matches!(grant, Some(Extension(Grant::Open))) {
        return Ok(());
    }
    let detail = "this node asks for no token yet; the first one is made by whoever owns the data directory: \
                  `reelring token create` on the node's machine";
    Err(Problem::forbidden("owner", detail))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    key: Option<Key>,
    prefix: Option<String>,
    asset: Option<AssetId>,
    methods: Option<Vec<String>>,
    expires_s: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Signed {
    /// Path and query; the node's address goes before it.
    path: String,
    /// The player's page, for an asset.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    /// The value of the parameter `signature`, valid for every address that is covered.
    signature: String,
    expires_at: Timestamp,
}

pub(super) async fn sign(
    State(node): State<Arc<Node>>,
    grant: Option<Extension<Grant>>,
    request: Request,
) -> Result<Json<Signed>, Problem> {
    let wanted: Wanted = json(request).await?;
    let methods = wanted.methods.unwrap_or_else(|| vec!["GET".into()]);
    let invalid = |detail: String| Problem::bad_request("invalid-signature-request", detail);
    let methods = Methods::of(methods.iter().map(String::as_str)).map_err(invalid)?;
    let expires_at = from_now(wanted.expires_s.unwrap_or(EXPIRES_S), "expires_s")?;
    let (path, page, resource, prefix) = match (wanted.key, wanted.prefix, wanted.asset) {
        (Some(key), None, None) => {
            let resource = format!("/v1/objects/{key}");
            (utf8_percent_encode(&resource, address::PATH).to_string(), None, resource, false)
        }
        (None, Some(prefix), None) => {
            if !prefix.is_empty() && !prefix.ends_with('/') {
                return Err(invalid(format!("the prefix {prefix:?} must end with /, or be empty for every object")));
            }
            let resource = format!("/v1/objects/{prefix}");
            (utf8_percent_encode(&resource, address::PATH).to_string(), None, resource, true)
        }
        (None, None, Some(asset)) => {
            let resource = format!("/v1/assets/{asset}/");
            (format!("{resource}hls/main.m3u8"), Some(format!("/play/{asset}")), resource, true)
        }
        _ => return Err(invalid("exactly one of key, prefix and asset must be given".into())),
    };
    let cover = match (prefix, u16::try_from(resource.len())) {
        (false, _) => Cover::Exact,
        (true, Ok(bytes)) => Cover::Prefix(bytes),
        (true, Err(_)) => return Err(invalid(format!("the prefix has {} bytes, more than any key", resource.len()))),
    };
    let by = match grant {
        Some(Extension(Grant::Token(token))) => Some(token.id.clone()),
        _ => None,
    };
    let sign = move |node: &Node| node.access().sign(by.as_ref(), methods, cover, resource.as_bytes(), expires_at);
    let signature: Signature = blocking(node, sign).await?;
    let signed = |path: String| format!("{path}?{SIGNATURE}={signature}");
    Ok(Json(Signed { page: page.map(signed), path: signed(path), signature: signature.to_string(), expires_at }))
}

fn from_now(seconds: u64, name: &str) -> Result<Timestamp, Problem> {
    let whole = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    whole.checked_add(Duration::from_secs(seconds)).map_err(|_| {
        Problem::bad_request("invalid-json", format!("{name}={seconds} lies beyond the calendar; choose less"))
    })
}

async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let request = request.map(|body| axum::body::Body::new(http_body_util::Limited::new(body, limits::HTTP_JSON_BODY)));
    let parsed: Result<Json<T>, JsonRejection> = Json::from_request(request, &()).await;
    Ok(parsed?.0)
}

async fn blocking<T: Send + 'static>(
    node: Arc<Node>,
    work: impl FnOnce(&Node) -> Result<T, AccessError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(move || work(&node)).await {
        Ok(outcome) => outcome.map_err(Problem::from),
        Err(error) => Err(Problem::unavailable("draining", format!("the node is stopping: {error}"), 5)),
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        let detail = error.to_string();
        match error {
            AccessError::Named { .. } => Self::conflict("token-name", detail),
            AccessError::Full { .. } => Self::conflict("too-many-tokens", detail),
            AccessError::Expired { .. } | AccessError::TooLong { .. } => Self::bad_request("expires", detail),
            AccessError::Scope { .. } => Self::forbidden("scope", detail),
            AccessError::Gone { .. } => Self::not_found(detail),
            AccessError::File(_) | AccessError::Random => {
                tracing::error!(%detail, "tokens cannot be changed");
                Self::unavailable("tokens", detail, 60)
            }
        }
    }
}

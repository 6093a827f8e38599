//! The node's HTTP interface: one file per resource, errors as problem+json, everything streamed.
//!
//! A handler holds no state of its own; the [`Node`] has it. When a client goes away its handler's future is dropped:
//! an upload is aborted and its partial file removed, a download closes its file, a job goes on.

mod access;
mod admission;
mod assets;
mod blob;
mod caching;
mod conditional;
mod connection;
mod cors;
mod digest;
mod disposition;
mod events;
mod following;
#[cfg(test)]
mod fuzz;
mod head_timer;
mod health;
mod http2;
mod index;
mod jobs;
mod lanes;
mod linger;
mod metrics;
mod multipart;
mod objects;
mod origin;
mod pace;
mod patience;
mod player;
mod plugins;
mod problem;
mod range;
mod refusal;
mod scrub;
mod server;
mod site;
pub(crate) mod socket;
mod tls;
mod tokens;
mod uploads;
mod volumes;
mod zero_copy;

pub use metrics::HttpMetrics;
pub use server::serve;
pub use tls::{Tls, TlsError};

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};

use crate::limits;
use crate::node::Node;
use problem::Problem;

/// All resources, for a command that has the node in its own process: it owns the data directory and may do everything.
pub fn router(node: Arc<Node>) -> Router {
    observed(routes(), node)
}

/// All resources behind the question who asks, for [`serve`].
fn guarded_router(node: Arc<Node>) -> Router {
    let guard = axum::middleware::from_fn_with_state(node.clone(), access::guard);
    observed(routes().layer(guard), node)
}

/// What lies around every answer, a refusal too.
fn observed(routes: Router<Arc<Node>>, node: Arc<Node>) -> Router {
    routes.layer(axum::middleware::from_fn_with_state(node.clone(), problem::observe)).with_state(node)
}

fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/v1/objects", get(objects::list))
        .route("/v1/objects/", get(objects::root))
        .route(objects::ROUTE, get(objects::read).put(objects::write).delete(objects::remove))
        .route("/v1/uploads", post(uploads::create).options(uploads::options))
        .route("/v1/uploads/", post(uploads::create).options(uploads::options))
        .route(
            "/v1/uploads/{id}",
            get(uploads::status)
                .patch(uploads::append)
                .delete(uploads::terminate)
                .post(uploads::overridden)
                .options(uploads::options),
        )
        .route("/v1/jobs", get(jobs::list).post(jobs::submit))
        .route("/v1/jobs/{id}", get(jobs::one).delete(jobs::cancel))
        .route("/v1/jobs/{id}/{action}", post(jobs::act))
        .route("/v1/events", get(events::follow))
        .route("/v1/assets", get(assets::list))
        .route("/v1/assets/{id}", get(assets::one).delete(assets::remove))
        .route("/v1/assets/{id}/hls/{*path}", get(assets::hls))
        .route("/play/{asset}", get(player::page))
        .route("/player/hls.js", get(player::hls_js))
        .route("/v1/scrub", get(scrub::read).post(scrub::start).delete(scrub::stop))
        .route("/v1/plugins", get(plugins::list))
        .route("/v1/volumes", get(volumes::list))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{which}", delete(tokens::revoke))
        .route("/v1/signatures", post(tokens::sign))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::scrape))
        .fallback(|uri: axum::http::Uri| async move {
            Problem::not_found(format!("there is nothing at {}; docs/api.md lists the addresses", uri.path()))
        })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            Problem::method_not_allowed(format!("{method} is not possible on {}", uri.path()))
        })
}

/// Rows of a list page: what the client asks for within the bound, else the default.
fn page_limit(asked: Option<usize>) -> Result<usize, Problem> {
    match asked {
        None => Ok(limits::LIST_PAGE_DEFAULT),
        Some(limit) if (1..=limits::LIST_PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Problem::bad_request(
            "invalid-query",
            format!("limit={limit} is not possible: it must lie between 1 and {}", limits::LIST_PAGE_MAX),
        )),
    }
}

//! What no client can bring about at will: requests that meet at the very end of an upload.

use std::sync::Arc;

use bytes::Bytes;
use reelring_storage::Key;

use super::*;
use crate::config::{Config, Settings};
use crate::node::Node;

async fn node(dir: &std::path::Path) -> Arc<Node> {
    let settings = Settings { data: Some(dir.join("data")), ..Settings::default() };
    let (config, _) = Config::resolve(None, settings).unwrap();
    Node::open(config).await.unwrap()
}

/// An upload of five bytes, of which none has come.
async fn begun(uploads: &Uploads, kind: Kind) -> Record {
    let asked = Creation {
        kind,
        key: (kind == Kind::Whole).then(|| Key::parse("film").unwrap()),
        metadata: Metadata::default(),
        content_type: None,
        length: Some(5),
        condition: Condition::None,
        exclusive: false,
    };
    uploads.create(asked).await.unwrap().record
}

/// The record was read while the upload was open; by the time the bytes are looked for, it is complete.
#[tokio::test]
async fn who_finds_no_bytes_because_all_have_come_does_not_give_them_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    for kind in [Kind::Whole, Kind::Part] {
        let uploads = node.uploads();
        let stale = begun(uploads, kind).await;
        let id = stale.id;
        let (sender, feed) = Feed::channel();
        let append = uploads.append(id, Append::at(0), feed);
        let body = async move {
            sender.send(Piece::Data(Bytes::from_static(b"hello"))).await.unwrap();
            sender.send(Piece::End(None)).await.unwrap();
        };
        assert_eq!(tokio::join!(append, body).0.unwrap().record.state, State::Done);

        let inner = &uploads.inner;
        let (record, length) = inner.durable(stale.clone(), &inner.desk.entry(id)).await.unwrap();
        assert_eq!((record.state, length), (State::Done, 5), "{kind:?}");
        inner.give_up(&stale).await.unwrap();
        let status = uploads.status(id).await.unwrap();
        assert_eq!((status.record.state, status.offset), (State::Done, 5), "{kind:?}");
        assert!(node.store().open_blob(stale.blob).await.is_ok(), "{kind:?}");
    }
    node.drain().await.unwrap();
}

/// The row is gone already, and who gives the upload up still has its files in hand.
#[tokio::test]
async fn who_finds_the_bytes_in_hand_because_they_are_given_up_is_told_that_they_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let inner = &node.uploads().inner;
    let stale = begun(node.uploads(), Kind::Whole).await;
    let entry = inner.desk.entry(stale.id);
    assert!(inner.table.give_up(stale.id, inner.expires()).await.unwrap());
    inner.desk.remove(stale.id);
    let found = inner.durable(stale.clone(), &inner.desk.entry(stale.id)).await;
    assert!(matches!(found, Err(UploadError::Gone(_))), "{:?}", found.err());
    drop(entry);
    inner.store.discard_partial(stale.blob).await.unwrap();
    node.drain().await.unwrap();
}

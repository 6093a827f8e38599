//! A full volume: the error says so, nothing stays behind, reads go on, space returns.
//!
//! The volume is a small tmpfs in a mount namespace of its own, which needs user namespaces or
//! root; where neither is allowed the test says that it was skipped.

mod common;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use common::{collect, engines, files_below, pattern, put, store_bytes};
use reelring_storage::{BlobMeta, EngineChoice, Error, Key, Store};

const CHILD: &str = "REELRING_NO_SPACE_CHILD";

#[test]
fn a_full_volume_is_refused_cleanly() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for engine in engines() {
            runtime.block_on(fill(Path::new(&dir), engine));
        }
        return println!("filled and emptied");
    }
    let dir = tempfile::tempdir().unwrap();
    let namespaces = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(dir.path()).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        return println!("skipped: no mount namespace can be had here");
    }
    let script =
        "mount -t tmpfs -o size=16m tmpfs \"$0\" && exec \"$1\" --exact --nocapture a_full_volume_is_refused_cleanly";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("filled and emptied"), "{stdout}");
}

async fn fill(dir: &Path, engine: EngineChoice) {
    let dir = dir.join(engine.to_string());
    let store = common::open(&dir, engine).await;
    let kept = pattern(1_000_000);
    let key = Key::parse("kept").unwrap();
    let record = put(&store, &key, &kept).await.record;

    // Announced: refused before the first byte.
    let meta = BlobMeta { length_hint: Some(1 << 30), ..Default::default() };
    let error = store.create(meta).await.err().expect("1 GiB was promised room in 16 MiB");
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");

    // Together: nobody has written a byte, and yet no more is promised than there is.
    let mut begun = Vec::new();
    let refusal = loop {
        let meta = BlobMeta { length_hint: Some(1_000_000), ..Default::default() };
        match store.create(meta).await {
            Ok(writer) => begun.push(writer),
            Err(error) => break error,
        }
        assert!(begun.len() < 16, "16 MB were promised of 16 MiB that hold 1 MB already");
    };
    assert!(matches!(refusal, Error::NoSpace { room: Some(_), .. }), "{refusal}");
    assert!(begun.len() > 8, "only {} uploads of 1 MB found room in 14 MiB", begun.len());
    for writer in &mut begun {
        writer.ready().await.unwrap();
        writer.write(Bytes::from(pattern(1_000_000))).await.expect("what was promised is there");
    }
    for writer in begun {
        drop(writer.seal().await.expect("what was promised is there"));
    }

    // Not announced: refused half way, by the write, the checkpoint or the seal.
    for journaled in [false, true] {
        let error = overfill(&store, journaled).await.expect_err("32 MB found room in 16 MiB");
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        for id in store.journaled_partials().await.unwrap() {
            store.discard_partial(id).await.unwrap();
        }
        let reader = store.open_blob(record.blob).await.unwrap();
        assert!(collect(reader.stream(0..1_000_000)).await == kept, "reads go on");
        assert!(!store.stats().degraded, "a full volume is not a broken one");
    }

    // The room came back: as much again fits.
    drop(store_bytes(&store, &pattern(8_000_000)).await);
    store.delete_object(&key, Default::default()).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(files_below(&dir.join("partial")).len(), 0);
    assert_eq!(files_below(&dir.join("blobs")).len(), 0);
    std::fs::remove_dir_all(&dir).unwrap();
}

async fn overfill(store: &Store, journaled: bool) -> Result<(), Error> {
    let mut writer = if journaled {
        store.create_journaled(reelring_storage::BlobId::new(), BlobMeta::default(), vec![]).await?
    } else {
        store.create(BlobMeta::default()).await?
    };
    for _ in 0..32 {
        writer.ready().await?;
        writer.write(Bytes::from(pattern(1_000_000))).await?;
        if journaled {
            writer.checkpoint(vec![]).await?;
        }
    }
    writer.seal().await.map(drop)
}

//! A volume that fills in mid-fetch, on a small tmpfs of its own.

use std::path::Path;
use std::process::Command;

use reelring::error::FailureKind;

use crate::bench::{Bench, MIB, media, request, starts};
use crate::support::origin::{File, Origin};
use crate::support::{scratch, skipped};

/// Mounted while it lives.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None` without the right to mount.
    fn mounted(size: &str) -> Option<Tmpfs> {
        let dir = scratch("tmpfs");
        mount(&format!("size={size}"), dir.path()).then(|| Tmpfs(dir))
    }

    fn grow(&self, size: &str) {
        assert!(mount(&format!("remount,size={size}"), self.0.path()), "the tmpfs grows");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the store may still be closing its files.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(options: &str, at: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
    mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_keeps_what_is_there_and_room_lets_it_go_on() {
    let Some(volume) = Tmpfs::mounted("32m") else {
        return skipped("a_full_volume_keeps_what_is_there_and_room_lets_it_go_on", "no right to mount a tmpfs");
    };
    let bench = Bench::on(tempfile::tempdir_in(volume.0.path()).unwrap()).await;
    let origin = Origin::start().await;
    let file = File::new(media(31, 48 * MIB)).etag("\"v1\"");
    let bytes = file.bytes.clone();

    // A declared length is refused before the first byte is written.
    let declared = origin.serve("/declared.mp4", file.clone());
    let failure = bench.fails(&declared).await;
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    bench.leaves_nothing().await;

    // Without one it shows only when the volume is full.
    let url = origin.answer("/a.mp4", move |asked, _| file.reply(asked).chunked());
    let req = request(&url);
    let failure = bench.run(req.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    assert_eq!(bench.store.journaled_partials().await.unwrap(), [req.blob]);

    volume.grow("160m");
    let fetched = bench.run(req).await.unwrap();
    assert_eq!(bench.bytes(fetched).await, bytes);
    let asked = origin.asked("/a.mp4");
    assert!(starts(&asked)[1].is_some_and(|start| start >= 16 * MIB as u64), "{:?}", starts(&asked));
    bench.leaves_nothing().await;
}

//! Concatenation: parts become one object, in one transaction that also marks them as used.
//!
//! The bytes are copied, because an object is one file whose offsets are its own; the parts go when the copy is durable,
//! so a join needs room for the object beside them. A join that is asked for again, because its answer was lost, is
//! answered with the upload it made: clients ask again with the same parts.
//!
//! Cancel: a join runs to its end in a task of its own, whatever becomes of its client. A drain ends it, and nothing stays.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::{StreamExt, pin_mut};
use reelring_storage::{BlobId, BlobMeta, BlobWriter, Error as StorageError};

use super::record::{Kind, Record, State, UploadId};
use super::{Creation, Inner, Result, Status, UploadError, Uploads, table};
use crate::{limits, media_type};

impl Uploads {
    /// Makes one object of the parts, in their order. Durable when it returns.
    pub async fn join(&self, asked: Creation, parts: Vec<UploadId>) -> Result<Status> {
        let inner = Arc::clone(&self.inner);
        let join = self.inner.spawn(async move { inner.join(asked, parts).await });
        match join.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(UploadError::Draining { kept: 0 }),
        }
    }
}

impl Inner {
    async fn join(&self, asked: Creation, parts: Vec<UploadId>) -> Result<Status> {
        // Who asks again while the first is at it finds what that one made.
        let _place = tokio::select! {
            place = self.desk.join_place(parts.first()) => place,
            () = self.closing.cancelled() => return Err(UploadError::Draining { kept: 0 }),
        };
        if let Some(record) = self.table.joined_of(&parts).await?
            && asked.key.as_ref().is_none_or(|key| Some(key) == record.key.as_ref())
        {
            let offset = record.length.unwrap_or(0);
            return Ok(Status { record, offset });
        }
        let mut length = 0;
        let mut blobs = Vec::with_capacity(parts.len());
        for id in &parts {
            let part = self.record(*id).await?;
            check_part(&part)?;
            length += part.length.unwrap_or(0);
            blobs.push(part.blob);
        }
        if length > limits::OBJECT_BYTES {
            return Err(UploadError::TooLarge { length });
        }
        let blob = BlobId::new();
        let key = asked.place(blob);
        let condition = asked.condition.precondition();
        condition.check(&key, self.store.object(&key).await?.as_ref())?;
        let meta = BlobMeta { key: Some(key.to_string()), content_type: None, length_hint: Some(length) };
        let mut writer = self.store.create(meta).await?;
        let head = match self.copy(&mut writer, &blobs).await {
            Ok(head) => head,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        let content_type = asked.type_of(Some(&key), &head);
        writer.set_content_type(content_type.clone());
        let sealed = writer.seal().await?;
        let record = Record {
            id: UploadId::new(),
            blob: sealed.id,
            kind: Kind::Joined,
            state: State::Done,
            key: Some(key.clone()),
            content_type,
            length: Some(length),
            metadata: asked.metadata.into_text(),
            condition: asked.condition,
            parts: parts.clone(),
            etag: Some(sealed.blake3),
            exclusive: false,
            expires_at: self.expires(),
        };
        let row = record.clone();
        self.store
            .put_object_with(&key, sealed, condition, move |tx, _| {
                for id in &parts {
                    let part = table::one(tx, *id)?.filter(|part| check_part(part).is_ok());
                    if part.is_none() {
                        return Err(StorageError::Rejected(format!("part {id} was removed while it was joined")));
                    }
                }
                for id in &parts {
                    table::change(tx, *id, |part| {
                        part.state = State::Used;
                        part.expires_at = row.expires_at;
                    })?;
                }
                table::insert(tx, &row)?;
                Ok(blobs)
            })
            .await?;
        self.counts.completed.fetch_add(1, Relaxed);
        Ok(Status { record, offset: length })
    }

    /// Copies the blobs one after another; gives the first bytes, which tell a type.
    async fn copy(&self, writer: &mut BlobWriter, blobs: &[BlobId]) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        for blob in blobs {
            let reader = self.store.open_blob(*blob).await?;
            let bytes = reader.stream(0..reader.len());
            pin_mut!(bytes);
            loop {
                writer.ready().await?;
                let Some(chunk) = bytes.next().await else { break };
                let chunk = chunk?;
                head.extend_from_slice(&chunk[..chunk.len().min(media_type::HEAD_BYTES - head.len())]);
                writer.write(chunk).await?;
                if self.closing.is_cancelled() {
                    return Err(UploadError::Draining { kept: 0 });
                }
            }
        }
        Ok(head)
    }
}

fn check_part(part: &Record) -> Result<()> {
    let reason = match (part.kind, part.state) {
        (Kind::Part, State::Done) => return Ok(()),
        (Kind::Part, State::Open) => "it is not complete; send the rest of it first",
        (Kind::Part, State::Used) => "it is in another object already",
        (Kind::Part, State::Gone) => "it has expired; send it again",
        (Kind::Whole | Kind::Joined, _) => "it is no part; parts are created with Upload-Concat: partial",
    };
    Err(UploadError::Join { id: part.id, reason })
}

//! Whether a CUDA device opens, asked once per worker. Its absence is normal and comes back as a sentence.

use std::ptr;

use ffmpeg_sys_next as ff;

use crate::error::text_of;
use crate::log;

/// A CUDA device context; codecs take their own references to it.
pub struct Device(*mut ff::AVBufferRef);

// SAFETY: a reference-counted buffer; the count is atomic and CUDA contexts are pushed per call by libav.
unsafe impl Send for Device {}

impl Device {
    /// Loads the driver (dlopen), so this comes before the sandbox.
    pub fn open() -> Result<Device, String> {
        log::clear();
        let mut device = ptr::null_mut();
        // SAFETY: the out pointer is ours; null device name and options mean the first device.
        let code = unsafe {
            ff::av_hwdevice_ctx_create(
                &mut device,
                ff::AVHWDeviceType::AV_HWDEVICE_TYPE_CUDA,
                ptr::null(),
                ptr::null_mut(),
                0,
            )
        };
        if code >= 0 {
            return Ok(Device(device));
        }
        // The first line is the cause ("Cannot load libcuda.so.1"), what follows is the error on its way up.
        let line = log::tail().into_iter().next();
        let why = line.map(|line| line.rsplit("] ").next().unwrap_or_default().to_owned());
        log::clear();
        Err(format!("no CUDA device ({})", why.unwrap_or_else(|| text_of(code))))
    }

    /// A new reference for a codec context.
    pub fn share(&self) -> *mut ff::AVBufferRef {
        // SAFETY: a valid reference until drop.
        unsafe { ff::av_buffer_ref(self.0) }
    }

    /// Whether `decoder` has a CUDA path at all (NVDEC).
    pub fn decodes(decoder: *const ff::AVCodec) -> bool {
        (0..)
            .map_while(|index| {
                // SAFETY: a static codec; the list ends with null.
                unsafe { ff::avcodec_get_hw_config(decoder, index).as_ref() }
            })
            .any(|config| config.device_type == ff::AVHWDeviceType::AV_HWDEVICE_TYPE_CUDA)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: owned reference.
        unsafe { ff::av_buffer_unref(&mut self.0) };
    }
}

//! From decoded pictures to one rendition's: upright, scaled, 8-bit 4:2:0, every picture exactly once.
//!
//! A libavfilter graph of filters that never drop or repeat. A source that changes its size or format in mid-stream gets
//! a new graph; the output stays the same.

use std::ffi::c_int;
use std::ptr;

use ffmpeg_sys_next as ff;
use reelring_protocol::transcode::Rational;

use crate::av::{Frame, out_of_memory, text};
use crate::error::{Failure, check};
use crate::orientation::Orientation;

/// What every picture becomes.
#[derive(Debug, Clone)]
pub struct Target {
    pub width: u32,
    pub height: u32,
    pub sample_aspect: Rational,
    pub orientation: Orientation,
    /// The source is interlaced: pictures marked so are made whole, one for one.
    pub interlaced: bool,
    /// The source is HDR and is mapped down to the range of ordinary screens.
    pub tone_map: bool,
    /// The frames' time base, one over this.
    pub timescale: i32,
}

impl Target {
    fn chain(&self) -> String {
        let mut filters = Vec::new();
        if self.interlaced {
            filters.push("yadif=mode=send_frame:deint=interlaced".to_owned());
        }
        if self.orientation.mirrored {
            filters.push("hflip".to_owned());
        }
        match self.orientation.degrees {
            90 => filters.push("transpose=clock".into()),
            180 => filters.push("hflip,vflip".into()),
            270 => filters.push("transpose=cclock".into()),
            _ => {}
        }
        let size = format!("{}:{}", self.width, self.height);
        if self.tone_map {
            // Scaled first, so that the costly linear-light steps run on the smaller picture.
            filters.push(format!("zscale={size}:t=linear:npl=100,format=gbrpf32le"));
            filters.push("zscale=p=bt709,tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv".into());
        } else {
            filters.push(format!("scale={size}:flags=bicubic:out_range=tv"));
        }
        filters.push("format=yuv420p".into());
        filters.push(format!("setsar={}/{}", self.sample_aspect.num, self.sample_aspect.den));
        // Deinterlacing counts in half units.
        filters.push(format!("settb=1/{}", self.timescale));
        filters.join(",")
    }
}

pub struct Scaler {
    target: Target,
    graph: Option<Graph>,
    out: Frame,
}

impl Scaler {
    pub fn new(target: Target) -> Result<Scaler, Failure> {
        Ok(Scaler { target, graph: None, out: Frame::new()? })
    }

    /// Scales one picture (`None` drains) and hands what is ready to `each`.
    pub fn scale(
        &mut self,
        frame: Option<Frame>,
        mut each: impl FnMut(&mut Frame) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let Some(frame) = &frame
            && self.graph.as_ref().is_some_and(|graph| graph.shape != Shape::of(frame))
            && let Some(mut old) = self.graph.take()
        {
            old.push(None)?;
            old.pull(&mut self.out, &mut each)?;
        }
        let graph = match (&mut self.graph, &frame) {
            (Some(graph), _) => graph,
            (none, Some(frame)) => none.insert(Graph::build(&self.target, Shape::of(frame))?),
            (None, None) => return Ok(()),
        };
        graph.push(frame)?;
        graph.pull(&mut self.out, &mut each)
    }
}

/// What a graph is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: c_int,
    height: c_int,
    format: c_int,
}

impl Shape {
    fn of(frame: &Frame) -> Shape {
        let frame = frame.get();
        Shape { width: frame.width, height: frame.height, format: frame.format }
    }
}

struct Graph {
    graph: *mut ff::AVFilterGraph,
    source: *mut ff::AVFilterContext,
    sink: *mut ff::AVFilterContext,
    shape: Shape,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    fn build(target: &Target, shape: Shape) -> Result<Graph, Failure> {
        // SAFETY: no preconditions.
        let graph = unsafe { ff::avfilter_graph_alloc() };
        if graph.is_null() {
            return Err(out_of_memory("a filter graph"));
        }
        let mut built = Graph { graph, source: ptr::null_mut(), sink: ptr::null_mut(), shape };
        let arguments = text(&format!(
            "video_size={}x{}:pix_fmt={}:time_base=1/{}:pixel_aspect=1/1",
            shape.width, shape.height, shape.format, target.timescale
        ))?;
        let chain = text(&target.chain())?;
        // SAFETY: all names are static strings, the graph is ours, and the in/out lists are freed by the parser or below.
        unsafe {
            // One thread per rendition is what the pipeline gives; the graph starts none of its own.
            (*graph).nb_threads = 1;
            check(
                "the filter graph's source",
                ff::avfilter_graph_create_filter(
                    &mut built.source,
                    ff::avfilter_get_by_name(c"buffer".as_ptr()),
                    c"in".as_ptr(),
                    arguments.as_ptr(),
                    ptr::null_mut(),
                    graph,
                ),
            )?;
            check(
                "the filter graph's sink",
                ff::avfilter_graph_create_filter(
                    &mut built.sink,
                    ff::avfilter_get_by_name(c"buffersink".as_ptr()),
                    c"out".as_ptr(),
                    ptr::null(),
                    ptr::null_mut(),
                    graph,
                ),
            )?;
            // Named from the chain's point of view: its input is our source's output.
            let mut outputs = end(c"in", built.source)?;
            let mut inputs = end(c"out", built.sink)?;
            let code = ff::avfilter_graph_parse_ptr(graph, chain.as_ptr(), &mut inputs, &mut outputs, ptr::null_mut());
            ff::avfilter_inout_free(&mut inputs);
            ff::avfilter_inout_free(&mut outputs);
            check(&format!("the filters {chain:?}"), code)?;
            let code = ff::avfilter_graph_config(graph, ptr::null_mut());
            check(&format!("joining the filters {chain:?} to {shape:?}"), code)?;
        }
        Ok(built)
    }

    fn push(&mut self, frame: Option<Frame>) -> Result<(), Failure> {
        let raw = frame.as_ref().map_or(ptr::null_mut(), Frame::as_ptr);
        // SAFETY: a configured graph; the reference moves into it, and null marks the end.
        check("scaling", unsafe { ff::av_buffersrc_add_frame_flags(self.source, raw, 0) })?;
        Ok(())
    }

    fn pull(
        &mut self,
        out: &mut Frame,
        each: &mut impl FnMut(&mut Frame) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            out.clear();
            // SAFETY: a configured graph and a blank frame.
            let code = unsafe { ff::av_buffersink_get_frame(self.sink, out.as_ptr()) };
            if code == -libc::EAGAIN || code == ff::AVERROR_EOF {
                return Ok(());
            }
            check("scaling", code)?;
            each(out)?;
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: owned; frees the filters too.
        unsafe { ff::avfilter_graph_free(&mut self.graph) };
    }
}

/// # Safety
/// `filter` belongs to a living graph.
unsafe fn end(
    name: &'static std::ffi::CStr,
    filter: *mut ff::AVFilterContext,
) -> Result<*mut ff::AVFilterInOut, Failure> {
    // SAFETY: a fresh list of one element; the name is duplicated because the list frees it.
    unsafe {
        let list = ff::avfilter_inout_alloc();
        if list.is_null() {
            return Err(out_of_memory("a filter link"));
        }
        (*list).name = ff::av_strdup(name.as_ptr());
        (*list).filter_ctx = filter;
        (*list).pad_idx = 0;
        (*list).next = ptr::null_mut();
        Ok(list)
    }
}

/// Whether this FFmpeg can map HDR to the ordinary range.
pub fn can_tone_map() -> bool {
    // SAFETY: lookups by static name.
    unsafe {
        !ff::avfilter_get_by_name(c"zscale".as_ptr()).is_null()
            && !ff::avfilter_get_by_name(c"tonemap".as_ptr()).is_null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(orientation: Orientation) -> Target {
        Target {
            width: 32,
            height: 18,
            sample_aspect: Rational { num: 1, den: 1 },
            orientation,
            interlaced: false,
            tone_map: false,
            timescale: 12800,
        }
    }

    fn picture(width: c_int, height: c_int, format: ff::AVPixelFormat, pts: i64) -> Frame {
        let mut frame = Frame::new().unwrap();
        frame.get_mut().width = width;
        frame.get_mut().height = height;
        frame.get_mut().format = format as c_int;
        frame.get_mut().pts = pts;
        // SAFETY: size and format are set.
        unsafe { check("buffer", ff::av_frame_get_buffer(frame.as_ptr(), 0)).unwrap() };
        frame
    }

    #[test]
    fn a_size_change_in_mid_stream_loses_no_picture() {
        let mut scaler = Scaler::new(target(Orientation { degrees: 90, ..Orientation::default() })).unwrap();
        let mut seen = Vec::new();
        let mut keep = |frame: &mut Frame| {
            let frame = frame.get();
            assert_eq!((frame.width, frame.height), (32, 18));
            assert_eq!(frame.format, ff::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int);
            seen.push(frame.pts);
            Ok(())
        };
        let formats = [ff::AVPixelFormat::AV_PIX_FMT_YUV420P, ff::AVPixelFormat::AV_PIX_FMT_YUV444P10LE];
        for (number, side) in [64, 64, 48, 101].into_iter().enumerate() {
            let frame = picture(side, side + 2, formats[number % 2], number as i64 * 512);
            scaler.scale(Some(frame), &mut keep).unwrap();
        }
        scaler.scale(None, &mut keep).unwrap();
        assert_eq!(seen, [0, 512, 1024, 1536]);
    }

    #[test]
    fn deinterlacing_gives_each_picture_once_at_its_time() {
        let mut scaler = Scaler::new(Target { interlaced: true, ..target(Orientation::default()) }).unwrap();
        let mut seen = Vec::new();
        let mut keep = |frame: &mut Frame| {
            seen.push(frame.get().pts);
            Ok(())
        };
        let times = [0, 512, 1025, 4000];
        for at in times {
            let frame = picture(64, 64, ff::AVPixelFormat::AV_PIX_FMT_YUV420P, at);
            scaler.scale(Some(frame), &mut keep).unwrap();
        }
        scaler.scale(None, &mut keep).unwrap();
        assert_eq!(seen, times);
    }

    #[test]
    fn tone_mapping_runs_where_the_filters_exist() {
        if !can_tone_map() {
            return;
        }
        let mut scaler = Scaler::new(Target { tone_map: true, ..target(Orientation::default()) }).unwrap();
        let mut frame = picture(64, 36, ff::AVPixelFormat::AV_PIX_FMT_YUV420P10LE, 0);
        frame.get_mut().color_trc = ff::AVColorTransferCharacteristic::AVCOL_TRC_SMPTE2084;
        frame.get_mut().color_primaries = ff::AVColorPrimaries::AVCOL_PRI_BT2020;
        frame.get_mut().colorspace = ff::AVColorSpace::AVCOL_SPC_BT2020_NCL;
        let mut count = 0;
        let mut each = |_: &mut Frame| {
            count += 1;
            Ok(())
        };
        scaler.scale(Some(frame), &mut each).unwrap();
        scaler.scale(None, &mut each).unwrap();
        assert_eq!(count, 1);
    }
}

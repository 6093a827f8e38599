//! One plugin in one engine: loading it, calling it, and saying where it failed.
//!
//! The engine is never asked to stop: what does not end in time is killed from outside with the whole process, because
//! QuickJS cannot be interrupted inside its native functions. The one thing it reports itself is an exhausted heap,
//! after which it executes nothing more ([`Script::out_of_memory`]).

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use deno_core::error::{CoreError, CoreErrorKind, JsError};
use deno_core::{
    JsRuntime, ModuleLoadOptions, ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleSpecifier,
    PollEventLoopOptions, ResolutionKind, RuntimeOptions, v8,
};
use deno_error::JsErrorBox;
use reelring_protocol::plugin::{Position, ScriptError, limits};

use crate::link::{Link, cut};
use crate::ops;

const PRELUDE: &str = include_str!("prelude.js");
/// Initial size of the JavaScript heap.
const HEAP_START_BYTES: usize = 1 << 20;
/// Plugins' modules are named by this scheme, so that a stack trace tells their frames from ours.
const SCHEME: &str = "plugin:///";

/// A running `extract`; its value goes through [`Script::json`].
pub type Call = Pin<Box<dyn Future<Output = Result<v8::Global<v8::Value>, Box<JsError>>>>>;

pub struct Script {
    runtime: JsRuntime,
    manifest: v8::Global<v8::Function>,
    extract: v8::Global<v8::Function>,
    module: Option<v8::Global<v8::Value>>,
}

impl Script {
    /// An engine with the prelude in it and no plugin.
    pub fn new(link: Rc<Link>) -> anyhow::Result<Script> {
        let mut runtime = JsRuntime::try_new(RuntimeOptions {
            module_loader: Some(Rc::new(SingleFile)),
            extensions: vec![ops::reelring::init(link)],
            create_params: Some(v8::CreateParams::default().heap_limits(HEAP_START_BYTES, limits::HEAP_BYTES)),
            ..RuntimeOptions::default()
        })?;
        let entry = runtime.execute_script("ext:reelring/prelude.js", PRELUDE)?;
        let (manifest, extract) = {
            deno_core::scope!(scope, &mut runtime);
            let entry = v8::Local::new(scope, entry).try_cast::<v8::Object>()?;
            let function = |name: &str| -> anyhow::Result<v8::Global<v8::Function>> {
                let key = v8::String::new(scope, name).ok_or_else(|| anyhow::anyhow!("no room for {name}"))?;
                let value = entry.get(scope, key.into()).ok_or_else(|| anyhow::anyhow!("the prelude lacks {name}"))?;
                Ok(v8::Global::new(scope, value.try_cast::<v8::Function>()?))
            };
            (function("manifest")?, function("extract")?)
        };
        Ok(Script { runtime, manifest, extract, module: None })
    }

    /// Compiles and runs the module; the result is the JSON of its manifest.
    pub async fn load(&mut self, file: &str, source: String) -> Result<String, ScriptError> {
        let specifier = ModuleSpecifier::parse(&format!("{SCHEME}{file}")).map_err(|error| plain(error.to_string()))?;
        let id = self.runtime.load_main_es_module_from_code(&specifier, source).await.map_err(from_core)?;
        let evaluated = Box::pin(self.runtime.mod_evaluate(id));
        let options = PollEventLoopOptions::default();
        self.runtime.with_event_loop_promise(evaluated, options).await.map_err(from_core)?;
        let namespace = self.runtime.get_module_namespace(id).map_err(from_core)?;
        let module = {
            deno_core::scope!(scope, &mut self.runtime);
            let namespace: v8::Local<v8::Value> = v8::Local::new(scope, namespace).into();
            v8::Global::new(scope, namespace)
        };
        let manifest = self.runtime.call_with_args(&self.manifest, std::slice::from_ref(&module));
        let manifest = self.runtime.with_event_loop_promise(manifest, options).await.map_err(from_core)?;
        self.module = Some(module);
        self.json(&manifest)
    }

    /// Starts `extract(url, ctx)`. The call advances only while [`Script::poll`] is called.
    pub fn call(&mut self, call: u64, url: &str) -> Result<Call, ScriptError> {
        let module = self.module.clone().ok_or_else(|| plain("extract was asked for before a plugin was loaded"))?;
        let arguments = {
            deno_core::scope!(scope, &mut self.runtime);
            let url = v8::String::new(scope, url).ok_or_else(|| plain("no room for the URL"))?;
            let call: v8::Local<v8::Value> = v8::Number::new(scope, call as f64).into();
            [module, v8::Global::new(scope, call), v8::Global::new(scope, v8::Local::<v8::Value>::from(url))]
        };
        Ok(Box::pin(self.runtime.call_with_args(&self.extract, &arguments)))
    }

    /// The text of a value that the prelude has already made JSON; what has no JSON form is `null`.
    pub fn json(&mut self, value: &v8::Global<v8::Value>) -> Result<String, ScriptError> {
        deno_core::scope!(scope, &mut self.runtime);
        let value = v8::Local::new(scope, value);
        if !value.is_string() {
            return Ok("null".into());
        }
        let text = value.to_rust_string_lossy(scope);
        if text.len() > limits::RESULT_BYTES {
            let message = format!("it has {} bytes as JSON, the limit is {}", text.len(), limits::RESULT_BYTES);
            return Err(plain(message));
        }
        Ok(text)
    }

    /// Lets JavaScript run until it waits. Ready when there is nothing left that it could wait for.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ScriptError>> {
        self.runtime.poll_event_loop(context, PollEventLoopOptions::default()).map_err(from_core)
    }

    pub fn out_of_memory(&mut self) -> bool {
        self.runtime.v8_isolate().is_execution_terminating()
    }
}

fn plain(message: impl Into<String>) -> ScriptError {
    ScriptError { message: cut(&message.into()), at: None }
}

fn from_core(error: CoreError) -> ScriptError {
    match *error.0 {
        CoreErrorKind::Js(error) => from_js(&error),
        CoreErrorKind::PendingPromiseResolution => plain(NEVER_SETTLES),
        other => plain(other.to_string()),
    }
}

/// What an `await` ends with when there is nothing left that could settle it.
pub const NEVER_SETTLES: &str = "it awaits a promise that nothing can settle any more";

/// The error's own words and the innermost place in the plugin's file.
pub fn from_js(error: &JsError) -> ScriptError {
    let message = match (&error.name, &error.message) {
        (Some(name), Some(message)) if !name.is_empty() && !message.is_empty() => format!("{name}: {message}"),
        _ => error.exception_message.trim_start_matches("Uncaught ").trim_start_matches("(in promise) ").to_owned(),
    };
    let at = error.frames.iter().find_map(|frame| {
        let ours = frame.file_name.as_ref().is_some_and(|name| name.starts_with(SCHEME));
        let number = |value: Option<i64>| u32::try_from(value?).ok();
        ours.then_some(())?;
        Some(Position { line: number(frame.line_number)?, column: number(frame.column_number)? })
    });
    ScriptError { message: cut(&message), at }
}

/// A plugin is one file: whatever it imports is refused.
struct SingleFile;

impl ModuleLoader for SingleFile {
    fn resolve(&self, specifier: &str, _: &str, kind: ResolutionKind) -> Result<ModuleSpecifier, JsErrorBox> {
        match kind {
            ResolutionKind::MainModule => ModuleSpecifier::parse(specifier).map_err(JsErrorBox::from_err),
            _ => Err(single_file(specifier)),
        }
    }

    fn load(&self, url: &ModuleSpecifier, _: Option<&ModuleLoadReferrer>, _: ModuleLoadOptions) -> ModuleLoadResponse {
        ModuleLoadResponse::Sync(Err(single_file(url.as_str())))
    }
}

fn single_file(specifier: &str) -> JsErrorBox {
    JsErrorBox::type_error(format!(
        "a plugin is a single file and cannot import {specifier:?}; put its code in this file"
    ))
}

"""Parts of a data set written by an Apache Beam pipeline: for clusters, an optional extra."""

from caal_jax.data.prepare import read_part, write_loaded
from caal_jax.errors import InputError


def run_in_beam(job, todo, folder, *, options):
    """Yields (part, facts) of all parts after a pipeline has written them into `folder`.

    options: of the pipeline, as on its command line. Its workers must see the source and `folder`
    under the paths that they have here. Raises: InputError if Beam is missing or a worker fails.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            "--beam_pipeline_options",
            found="no apache-beam",
            expected="the optional runner of pipelines",
            remedy="Run: pip install 'caal_jax[beam]'.",
        ) from error
    try:
        with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            # Spread anew, since what follows a Create runs on one worker.
            parts = pipeline | beam.Create(todo) | beam.Reshuffle()
            _ = parts | beam.Map(write_loaded, job, folder)
    except Exception as error:  # runners wrap whatever a worker raised in errors of their own
        raise InputError(
            "the Beam pipeline",
            found=f"a failure ({str(error)[-300:]})",
            expected=f"workers that can read {job[2]} and write to {folder}",
            remedy="Repeat the command; finished parts are kept.",
        ) from error
    for part in todo:
        yield part, read_part(folder, part)

"""Dagster: flow.py every night, its steps as ops. Put it beside flow.py, in the folder to work in:

dagster job execute -f dagster_definitions.py -a definitions -j flow
dagster dev -f dagster_definitions.py
"""

from pathlib import Path

import dagster

from stillroom.workflows.dagster_job import dagster_job, dagster_schedule

HERE = Path(__file__).parent

job = dagster_job(
    HERE / "flow.py", out=HERE / "out" / "flow", state=HERE / "out" / ".stillroom", retries=2
)
nightly = dagster_schedule(job, "0 2 * * *", "Europe/Berlin", running=True)
definitions = dagster.Definitions(jobs=[job], schedules=[nightly])

"""From documents to a corpus of token shards: `headwater data prepare`.

options     what the user chooses, and the sizes that follow
plan        inputs cut into tasks; stored once
work        the work directory: outputs and records of finished tasks
*_task      one module per stage
tasks       run any task by name and number
run         all stages, here or with other processes
"""

from data_tools.prepare.executors import open_executor, prepare
from data_tools.prepare.finish_task import RECORD_NAME
from data_tools.prepare.gather_task import QUARANTINE_NAME
from data_tools.prepare.options import PrepareOptions, RunOptions
from data_tools.prepare.plan import Plan, make_plan
from data_tools.prepare.run import Prepared, run_plan

__all__ = [
    "QUARANTINE_NAME",
    "RECORD_NAME",
    "Plan",
    "PrepareOptions",
    "Prepared",
    "RunOptions",
    "make_plan",
    "open_executor",
    "prepare",
    "run_plan",
]

"""`python -m flink_jobs`."""

from app.cli.main import leave_after
from flink_jobs.cli import run

if __name__ == "__main__":
    leave_after(run)

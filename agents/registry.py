"""The application that the agents declare themselves on."""

from app.application import App
from features import fraud, records

app = App(features=[records, fraud])

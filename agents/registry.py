"""The application that the agents declare themselves on."""

from app.application import App
from features import carts, churn, fraud, fraud_patterns, outage, records

app = App(features=[records, fraud, fraud_patterns, outage, churn, carts])

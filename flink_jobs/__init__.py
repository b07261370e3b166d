"""The declared streams as Flink jobs: submitted, kept, stopped, upgraded. PyFlink itself runs in a process of its own."""

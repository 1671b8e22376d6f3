"""The CanaryRollout resource: its models, the rules on them, and the CRD that is generated from both."""

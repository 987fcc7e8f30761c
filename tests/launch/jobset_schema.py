"""The parts of a JobSet (jobset.x-k8s.io/v1alpha2) that the launcher uses, as a strict JSON schema.

From the fields of JobSet's v1alpha2 types, batch/v1 Job and core/v1 Pod: whatever is not one of them is
refused.
"""

DNS_LABEL = {"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
COUNT = {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RESOURCES = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"enum": ["google.com/tpu", "nvidia.com/gpu"]},
    "additionalProperties": COUNT,
}


def strict(required, **properties):
    """An object with these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(items):
    """A list of at least one."""
    return {"type": "array", "items": items, "minItems": 1}


FIELD = strict("fieldRef", fieldRef=strict("fieldPath", fieldPath={"type": "string"}))
ENV = {
    "oneOf": [
        strict("name value", name={"type": "string"}, value={"type": "string"}),
        strict("name valueFrom", name={"type": "string"}, valueFrom=FIELD),
    ]
}
CONTAINER = strict(
    "name image command args resources",
    name=DNS_LABEL,
    image={"type": "string", "minLength": 1},
    command=some({"type": "string"}),
    args=some({"type": "string"}),
    env=some(ENV),
    resources=strict("limits", limits=RESOURCES, requests=RESOURCES),
    terminationMessagePolicy={"enum": ["File", "FallbackToLogsOnError"]},
    volumeMounts=some(
        strict(
            "name mountPath",
            name=DNS_LABEL,
            mountPath={"type": "string", "pattern": "^/"},
            readOnly={"type": "boolean"},
        )
    ),
)
SIDECAR = strict(  # an init container that stays: restartPolicy Always
    "name image restartPolicy",
    restartPolicy={"const": "Always"},
    securityContext=strict("", capabilities=strict("add", add=some({"type": "string"}))),
    **{key: CONTAINER["properties"][key] for key in CONTAINER["properties"] if key != "resources"},
)
VOLUME = {
    "oneOf": [
        strict("name emptyDir", name=DNS_LABEL, emptyDir=strict("", medium={"enum": ["Memory"]})),
        strict(
            "name persistentVolumeClaim",
            name=DNS_LABEL,
            persistentVolumeClaim=strict("claimName", claimName={"type": "string"}),
        ),
        strict("name hostPath", name=DNS_LABEL, hostPath=strict("path", path={"type": "string"})),
        strict(
            "name csi",
            name=DNS_LABEL,
            csi=strict("driver", driver={"type": "string"}, volumeAttributes=TEXTS),
        ),
    ]
}
POD = strict(
    "restartPolicy containers",
    restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds={"type": "integer", "minimum": 0},
    nodeSelector=TEXTS,
    serviceAccountName={"type": "string"},
    hostNetwork={"type": "boolean"},
    dnsPolicy={"enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
    containers=some(CONTAINER),
    initContainers=some(SIDECAR),
    volumes=some(VOLUME),
    tolerations=some(TEXTS),
)
POD_FAILURE_RULE = {
    "oneOf": [
        strict(
            "action onExitCodes",
            action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
            onExitCodes=strict(
                "operator values",
                containerName=DNS_LABEL,
                operator={"enum": ["In", "NotIn"]},
                values=some({"type": "integer", "minimum": 1, "maximum": 255}),
            ),
        ),
        strict(
            "action onPodConditions",
            action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
            onPodConditions=some(
                strict("type status", type={"type": "string"}, status={"enum": ["True", "False"]})
            ),
        ),
    ]
}
JOB = strict(
    "template",
    backoffLimit={"type": "integer", "minimum": 0},
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    completions=COUNT,
    parallelism=COUNT,
    podFailurePolicy=strict("rules", rules=some(POD_FAILURE_RULE)),
    template=strict("spec", metadata=strict("", annotations=TEXTS, labels=TEXTS), spec=POD),
)
RESTARTS = ["", "AndIgnoreMaxRestarts"]
FAILURE_RULE = strict(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={
        "enum": ["FailJobSet", *(f"Restart{w}{r}" for w in ("JobSet", "Job") for r in RESTARTS)]
    },
    onJobFailureMessagePatterns=some({"type": "string", "format": "regex"}),
    onJobFailureReasons={
        "type": "array",
        "uniqueItems": True,
        "items": {
            "enum": [
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
            ]
        },
    },
)
JOBSET = strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=strict("name", name=DNS_LABEL, namespace=DNS_LABEL, labels=TEXTS, annotations=TEXTS),
    spec=strict(
        "replicatedJobs",
        network=strict(
            "",
            enableDNSHostnames={"type": "boolean"},
            publishNotReadyAddresses={"type": "boolean"},
            subdomain=DNS_LABEL,
        ),
        failurePolicy=strict(
            "",
            maxRestarts={"type": "integer", "minimum": 0},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules=some(FAILURE_RULE),
        ),
        replicatedJobs=some(
            strict(
                "name template", name=DNS_LABEL, replicas=COUNT, template=strict("spec", spec=JOB)
            )
        ),
    ),
)
